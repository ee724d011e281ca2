// Step times as a benchmark would have measured them, of devices whose parameters are known.
import { type CostModel, gatedExpertCost, h200, interpolate, predictStep } from '../../src/index.js'
import { Random } from '../../src/simulator/random.js'
import type { MeasuredShape, StepMeasurement, StepMeasurements } from '../../src/simulator.js'

export const qwen: MeasuredShape = {
  name: 'qwen3-30b-a3b',
  inputDim: 2048,
  hiddenDim: 768,
  outputDim: 2048,
  numExperts: 128,
  topK: 8,
  bytesPerValue: 2,
}

/** Assignments of tokens to experts whose logits have this standard deviation. */
export function skewedCounts(random: Random, shape: MeasuredShape, tokens: number, sigma: number): number[] {
  const weights = Array.from({ length: shape.numExperts }, () => Math.exp(sigma * random.normal()))
  const sum = weights.reduce((a, b) => a + b, 0)
  const counts = weights.map((w) => Math.min(tokens, Math.floor((w / sum) * tokens * shape.topK)))
  for (let left = tokens * shape.topK - counts.reduce((a, b) => a + b, 0); left > 0; ) {
    const e = random.integer(shape.numExperts)
    if ((counts[e] ?? 0) >= tokens) continue
    counts[e] = (counts[e] ?? 0) + 1
    left--
  }
  return counts
}

type Layout = Pick<StepMeasurement, 'strategy' | 'sms' | 'sliceOf' | 'counts'>

/** Fused and tiered layouts, over loads from a token to 16384. */
export function layouts(shape: MeasuredShape, seed: number): (Layout & { tokens: number })[] {
  const random = new Random(seed)
  const sizes = [[132], [84, 48], [96, 36], [64, 68], [64, 40, 28], [108, 24]]
  return [1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384].flatMap((tokens) =>
    [0, 0.7, 1.5].flatMap((sigma) => {
      const counts = skewedCounts(random, shape, tokens, sigma)
      const order = counts.map((_, e) => e).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b)
      return [sizes[0] ?? [132], sizes[1 + random.integer(5)] ?? [84, 48]].map((sms) => {
        const sliceOf = new Array<number>(shape.numExperts).fill(0)
        // The hottest experts in the first slice; where the ranking is cut is drawn.
        const cut = 2 + random.integer(24)
        const each = Math.ceil((shape.numExperts - cut) / Math.max(1, sms.length - 1))
        for (const [i, e] of order.entries()) {
          if (sms.length > 1) sliceOf[e] = i < cut ? 0 : 1 + Math.floor((i - cut) / each)
        }
        const strategy = sms.length === 1 ? ('fused' as const) : ('tiered' as const)
        return { tokens, strategy, sms, sliceOf: sms.length === 1 ? null : sliceOf, counts }
      })
    }),
  )
}

/** What `time` says of them, with noise of this relative standard deviation. */
export function measured(shape: MeasuredShape, seed: number, noise: number, time: (layout: Layout) => number) {
  const random = new Random(seed + 1000)
  return {
    format: 'nexus-step-measurements/1',
    device: 'made up',
    sms: 132,
    scope: 'layer',
    shapes: [shape],
    rows: layouts(shape, seed).map((layout) => ({
      shape: shape.name,
      ...layout,
      us: time(layout) * (1 + noise * random.normal()),
      samples: 200,
      interval: null,
    })),
  } satisfies StepMeasurements
}

/** A model of the documented form with known parameters. */
export const known: CostModel = {
  ...gatedExpertCost(h200, qwen0()),
  bandwidth: h200.bandwidth.map(({ sms, perSecond }) => ({ sms: sms * 1.15, perSecond: perSecond * 0.88 })),
  rate: [{ sms: 132, perSecond: 520e12 }],
  overheadUs: 0.05,
  overlap: 'slice',
  exposed: 0.3,
  rowTile: 8,
  extraRows: 12,
  stepUs: 9,
  perSliceUs: 2.5,
  perAssignmentUs: 4e-4,
}

function qwen0() {
  const { inputDim, hiddenDim, outputDim } = qwen
  return { inputDim, hiddenDim, outputDim }
}

export const byModel = (cost: CostModel) => (layout: Layout) =>
  predictStep(cost, layout.counts, {
    sms: layout.sms,
    sliceOf: layout.sliceOf ?? new Array<number>(layout.counts.length).fill(0),
  }).stepUs

/**
 * A device that is not of the model's form: tiles of up to 128 rows × 128 columns, handed out one by one to the SMs of their slice, each as
 * slow as its operations or its part of the bandwidth; two products after each other; then a combine.
 */
export function byTiles({ counts, sms, sliceOf }: Layout): number {
  const { inputDim, hiddenDim } = qwen
  const slices = sms.map((n, s) => {
    const free = new Float64Array(n)
    const bandwidth = (0.9 * interpolate(h200.bandwidth, n)) / n
    for (const [rowsK, columns] of [
      [inputDim, 2 * hiddenDim],
      [hiddenDim, inputDim],
    ] as const) {
      for (const [e, rows] of counts.entries()) {
        if ((sliceOf?.[e] ?? 0) !== s) continue
        for (let from = 0; from < rows; from += 128) {
          const tile = Math.min(128, Math.ceil((rows - from) / 16) * 16)
          for (let c = 0; c < columns; c += 128) {
            let first = 0
            for (let i = 1; i < n; i++) if ((free[i] ?? 0) < (free[first] ?? 0)) first = i
            // Of the weights, later row tiles find most in the L2 cache.
            const bytes = 2 * rowsK * (128 * (from === 0 ? 1 : 0.2) + 0.2 * tile)
            const flop = 2 * tile * 128 * rowsK
            const us = Math.max((bytes * 1e6) / bandwidth, (flop * 1e6) / (620e12 / 132)) + 0.15
            free[first] = (free[first] ?? 0) + us
          }
        }
      }
      free.fill(Math.max(...free) + 1)
    }
    return free[0] ?? 0
  })
  const assignments = counts.reduce((a, b) => a + b, 0)
  return 6 + 2 * (sms.length - 1) + Math.max(...slices) + (assignments * 2 * inputDim * 1e6) / 4e12
}
