/**
 * Part two: the textbook loop over experts against the layer, same weights, same input, same device. Runs alternate between
 * the two, so that a machine that gets busy or warm slows both alike.
 */
import { BaselineMoELayer, MoELayer } from '@nexus/core'
import { Tensor } from '@nexus/native'
import { relativeError } from './compare.js'
import { type Context, throwIfStopped } from './context.js'
import { grouped, median, milliseconds, table } from './format.js'
import type { ComparisonReport, ComparisonRow } from './report.js'

/** The original design's layer: eight three-layer ReLU MLPs with biases. */
const shape = { inputDim: 512, outputDim: 512, hiddenDim: 1024, numExperts: 8, topK: 2 } as const
/** The two add a token's experts in another order: float32 rounding, or one rounding to bfloat16. */
const tolerances = { f32: 1e-5, bf16: 1e-2 } as const
const warmUpRuns = 3
/** Without --runs: this many, but no more than fit into the time (on a slow machine), and never fewer than three. */
const defaultRuns = 25
const minRuns = 3
const budgetMs = 8000

export async function compareWithBaseline(
  context: Context,
  batches: readonly number[],
  runs: number | null,
): Promise<ComparisonReport> {
  const { device, seed } = context
  const dtype = device === 'cpu' ? 'f32' : 'bf16'
  context.output.progress.stage('making a layer and its baseline')
  const options = { ...shape, kind: 'three-layer', activation: 'relu', bias: true, dtype, device, seed } as const
  const layer = await MoELayer.create(options)
  try {
    throwIfStopped(context.signal)
    const baseline = await BaselineMoELayer.create({ weightsFrom: layer })
    try {
      const rows: ComparisonRow[] = []
      for (const batch of batches) rows.push(await compareBatch(context, { layer, baseline, dtype, batch, runs }))
      return { dtype, ...shape, tolerance: tolerances[dtype], rows, ok: rows.every((row) => row.ok) }
    } finally {
      baseline.dispose()
    }
  } finally {
    layer.dispose()
  }
}

interface Contest {
  readonly layer: MoELayer
  readonly baseline: BaselineMoELayer
  readonly dtype: 'f32' | 'bf16'
  readonly batch: number
  readonly runs: number | null
}

async function compareBatch(
  context: Context,
  { layer, baseline, dtype, batch, runs }: Contest,
): Promise<ComparisonRow> {
  const { output, device, seed, signal } = context
  const wanted = runs ?? defaultRuns
  output.progress.stage(`timing batch ${batch}: ${wanted} runs each`)
  const x = Tensor.randn([batch, shape.inputDim], { dtype, device, seed: (seed + batch) % 2 ** 32 })
  try {
    const error = await difference(layer, baseline, x)
    const nexusMs: number[] = []
    const baselineMs: number[] = []
    const start = performance.now()
    const outOfTime = (share: number) => runs === null && performance.now() - start > share * budgetMs
    // The comparison of the outputs was the first warm-up.
    for (let run = 1; run < warmUpRuns && !outOfTime(0.1); run++) {
      throwIfStopped(signal)
      await timed(baseline, x)
      await timed(layer, x)
    }
    while (nexusMs.length < wanted && !(nexusMs.length >= minRuns && outOfTime(1))) {
      throwIfStopped(signal)
      baselineMs.push(await timed(baseline, x))
      nexusMs.push(await timed(layer, x))
      output.progress.tick(nexusMs.length, wanted)
    }
    const medians = { baselineMs: median(baselineMs), nexusMs: median(nexusMs) }
    return {
      batch,
      runs: nexusMs.length,
      ...medians,
      speedup: medians.baselineMs / medians.nexusMs,
      tokensPerSecond: (1000 * batch) / medians.nexusMs,
      relativeError: error,
      ok: error <= tolerances[dtype],
    }
  } finally {
    x.dispose()
  }
}

async function difference(layer: MoELayer, baseline: BaselineMoELayer, x: Tensor): Promise<number> {
  const a = await layer.forward(x)
  const b = await baseline.forward(x)
  try {
    const [actual, expected] = await Promise.all([a.output.toFloat32Array(), b.output.toFloat32Array()])
    return relativeError(actual, expected)
  } finally {
    a.output.dispose()
    b.output.dispose()
  }
}

/** Milliseconds as the caller sees them: from the call until the promise settles, when the device has finished. */
async function timed(layer: MoELayer | BaselineMoELayer, x: Tensor): Promise<number> {
  const start = performance.now()
  const { output } = await layer.forward(x)
  const elapsed = performance.now() - start
  output.dispose()
  return elapsed
}

export function printComparison({ output }: Context, report: ComparisonReport): void {
  const { style } = output
  const { inputDim, hiddenDim, outputDim, numExperts, topK, dtype } = report
  const fewest = Math.min(...report.rows.map((row) => row.runs))
  output.print(
    '',
    style.bold('Baseline against Nexus'),
    `${inputDim} → ${hiddenDim} → ${hiddenDim} → ${outputDim}, ${numExperts} experts (three-layer ReLU MLP with biases), top-${topK}, ${dtype}.`,
    `Baseline: the textbook loop over experts. Same weights and input; medians of at least ${fewest} alternating runs.`,
    ...table(
      [
        { title: 'batch' },
        { title: 'baseline ms' },
        { title: 'nexus ms' },
        { title: 'speedup' },
        { title: 'tokens/s' },
        { title: 'outputs', align: 'left' },
      ],
      report.rows.map((row) => [
        String(row.batch),
        milliseconds(row.baselineMs),
        milliseconds(row.nexusMs),
        { text: `${row.speedup.toFixed(2)}×`, paint: row.speedup >= 1 ? style.green : style.yellow },
        grouped(row.tokensPerSecond),
        row.ok
          ? { text: 'agree', paint: style.green }
          : { text: `DIFFER by ${row.relativeError.toExponential(1)}`, paint: style.red },
      ]),
      style.dim,
    ),
  )
}
