/**
 * `bench slice-cost`: what a slice costs a step that has it for itself. The same layer on the whole device and in hardware slices of it, by graph
 * and launched one operation at a time, phase by phase, over steps from the smallest to hundreds of microseconds: a cost that is the
 * same for all of them is a matter of launching, one that grows with the step is bandwidth or arithmetic. Kernels that are capped at as many SMs,
 * on the whole device, tell what is the slice's from what is the SMs'.
 */
import { describeDevice, MoELayer, SlicePartition, Stream, Tensor, tenant } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { layerOptions } from '../layer-options.js'
import { median } from '../median.js'
import { Owned } from '../owned.js'
import { cellLogits } from '../random.js'
import type { Shape } from '../shapes.js'
import { timeCalls } from '../timing.js'
import { type Fit, fitCost } from './fit.js'
import { type Probe, probe } from './probes.js'

export interface SliceCostOptions {
  readonly device: 'cpu' | 'cuda'
  readonly cells: readonly { readonly shape: Shape; readonly tokens: number }[]
  /** SMs of the slices; the whole device is measured too. */
  readonly sms: readonly number[]
  readonly budgetMs: number
  readonly seed: number
  readonly onProgress: (line: string) => void
}

/**
 * The whole device; a hardware slice of it; or the whole device with kernels that fill no more SMs than the slice has, which have the same
 * share of the work but are launched as on the device.
 */
export type Where = 'device' | 'slice' | 'cap'

/** A layer's step in one place, in microseconds. */
export interface SliceCostRow {
  readonly shape: string
  readonly tokens: number
  readonly sms: number
  readonly where: Where
  readonly graphUs: number
  readonly eagerUs: number
  /** Of a step that is launched one operation at a time, alone on the stream. */
  readonly phasesUs: {
    readonly router: number
    readonly experts: number
    readonly combine: number
    readonly total: number
  }
}

export interface SliceCostResult {
  readonly kind: 'slice-cost'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly rows: readonly SliceCostRow[]
  readonly probes: readonly (Probe & { readonly sms: number; readonly where: Where })[]
  /** What a slice adds, as a + b · (the step on the whole device). */
  readonly fits: readonly (Fit & {
    readonly sms: number
    readonly where: Where
    readonly how: 'graph' | 'eager'
  })[]
  readonly failed: readonly { readonly sms: number; readonly why: string }[]
}

interface Place {
  readonly sms: number
  readonly where: Where
  readonly stream: Stream
  dispose(): void
}

/** The whole device, then each slice that can be cut, beside a cap of as many SMs. */
function placesOf({ device, sms }: SliceCostOptions, failed: { sms: number; why: string }[]): Place[] {
  const all = describeDevice(device).sms
  const stream = Stream.create({ device })
  const places: Place[] = [{ sms: all, where: 'device', stream, dispose: () => stream.dispose() }]
  for (const n of sms) {
    try {
      if (n >= all) throw new RangeError(`--sms: expected less than the device's ${all}, got ${n}`)
      const slices = [
        { name: 'here', sms: n },
        { name: 'rest', sms: all - n },
      ]
      const partition = SlicePartition.build(device, slices)
      places.push({ sms: n, where: 'slice', stream: partition.stream('here'), dispose: () => partition.dispose() })
      // Which the CPU ignores: it would be the device once more.
      if (device === 'cpu') continue
      const capped = Stream.create({ device, maxWidth: n })
      places.push({ sms: n, where: 'cap', stream: capped, dispose: () => capped.dispose() })
    } catch (error) {
      failed.push({ sms: n, why: errorText(error) })
    }
  }
  return places
}

export async function sliceCostBench(options: SliceCostOptions): Promise<SliceCostResult> {
  const { device, cells, seed, budgetMs, onProgress } = options
  const failed: { sms: number; why: string }[] = []
  const rows: SliceCostRow[] = []
  const probes: SliceCostResult['probes'][number][] = []
  const places = placesOf(options, failed)
  try {
    for (const { sms, where, stream } of places) {
      try {
        const seen = await probe(device, stream, budgetMs)
        probes.push({ sms, where, ...seen })
        onProgress(
          `${sms} SMs (${where}): a launch ${seen.eagerLaunchUs.toFixed(2)} us, a node ${seen.nodeUs.toFixed(2)} us, a graph ${seen.graphUs.toFixed(2)} us, ${seen.gigabytesPerSecond.toFixed(0)} GB/s`,
        )
      } catch (error) {
        failed.push({ sms, why: `kernels of nothing: ${errorText(error)}` })
      }
    }
    for (const shape of new Set(cells.map((cell) => cell.shape))) {
      const tokens = cells.filter((cell) => cell.shape === shape).map((cell) => cell.tokens)
      for (const row of await measureShape(shape, tokens, places, options, failed)) {
        rows.push(row)
        const { router, experts, combine } = row.phasesUs
        onProgress(
          `${row.shape} ${row.tokens} tokens on ${row.sms} SMs (${row.where}): ${row.graphUs.toFixed(1)} us by graph, ${row.eagerUs.toFixed(1)} eager; ` +
            `router ${router.toFixed(1)} experts ${experts.toFixed(1)} combine ${combine.toFixed(1)}`,
        )
      }
    }
  } finally {
    for (const place of places) place.dispose()
  }
  return {
    kind: 'slice-cost',
    what:
      'one layer alone: on the whole device, in hardware slices of it whose neighbour does nothing, and by kernels capped at as many SMs; one ' +
      'batch of inputs, given logits, weights not rotated; medians',
    environment: environment(device),
    seed,
    rows,
    probes,
    fits: fitsOf(rows),
    failed,
  }
}

function fitsOf(rows: readonly SliceCostRow[]): SliceCostResult['fits'] {
  const whole = rows.filter(({ where }) => where === 'device')
  const others = rows.filter(({ where }) => where !== 'device')
  const places = [...new Map(others.map(({ sms, where }) => [`${where} ${sms}`, { sms, where }])).values()]
  return places.flatMap(({ sms, where }) =>
    (['graph', 'eager'] as const).flatMap((how) => {
      const us = (row: SliceCostRow) => (how === 'graph' ? row.graphUs : row.eagerUs)
      const points = whole.flatMap((base) => {
        const own = others.find(
          (row) => row.sms === sms && row.where === where && row.shape === base.shape && row.tokens === base.tokens,
        )
        return own === undefined ? [] : [{ wholeUs: us(base), sliceUs: us(own) }]
      })
      const fit = fitCost(points)
      return fit === null ? [] : [{ sms, where, how, ...fit }]
    }),
  )
}

async function measureShape(
  shape: Shape,
  tokenCounts: readonly number[],
  places: readonly Place[],
  { device, seed, budgetMs }: SliceCostOptions,
  failed: { sms: number; why: string }[],
): Promise<SliceCostRow[]> {
  const rows: SliceCostRow[] = []
  using owned = new Owned()
  const { own } = owned
  try {
    const common = layerOptions(shape, device, 'bf16')
    const plain = own(await MoELayer.create({ ...common, seed }))
    const graphed = own(await MoELayer.create({ ...common, weightsFrom: plain, graphs: { captureAfter: 1 } }))
    for (const tokens of tokenCounts) {
      const [host] = cellLogits(tokens, shape.experts, 1, 0, seed + tokens)
      if (!host) throw new RangeError('logits: expected one batch, got none')
      const logits = own(Tensor.from(host, [tokens, shape.experts], { device }))
      const x = own(Tensor.randn([tokens, shape.hidden], { dtype: 'bf16', device, seed: seed + 7 }))
      const out = own(Tensor.empty([tokens, shape.hidden], { dtype: 'bf16', device }))
      for (const { sms, where, stream } of places) {
        try {
          const step = (layer: MoELayer) => () => void layer[tenant](stream, x, { logits, out })
          const graphUs = (await timeCalls(stream, [step(graphed)], { budgetMs, maxCalls: 400 })).medianUs
          const eagerUs = (await timeCalls(stream, [step(plain)], { budgetMs, maxCalls: 400 })).medianUs
          const phasesUs = await phases(() => plain.forward(x, { logits, out, stream }))
          rows.push({ shape: shape.name, tokens, sms, where, graphUs, eagerUs, phasesUs })
        } catch (error) {
          failed.push({ sms, why: `${shape.name}, ${tokens} tokens: ${errorText(error)}` })
        }
      }
    }
    return rows
  } finally {
    for (const { stream } of places) await stream.synchronize()
  }
}

async function phases(forward: () => ReturnType<MoELayer['forward']>) {
  const all = { router: [] as number[], experts: [] as number[], combine: [] as number[], total: [] as number[] }
  const us = (ms: number | null) => (ms ?? Number.NaN) * 1e3
  for (let i = 0; i < 25; i++) {
    const { times } = (await forward()).stats
    if (i < 4) continue
    all.router.push(us(times.routerMs))
    all.experts.push(us(times.expertsMs))
    all.combine.push(us(times.combineMs))
    all.total.push(us(times.totalMs))
  }
  return {
    router: median(all.router),
    experts: median(all.experts),
    combine: median(all.combine),
    total: median(all.total),
  }
}
