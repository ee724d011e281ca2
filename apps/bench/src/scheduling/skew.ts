/**
 * `bench skew`: experts in slices by temperature against one grouped launch, where a few experts are hot. The layers share their weights
 * and step in turns, so that whatever the chip does happens to all of them; medians of interleaved steps with bootstrap intervals.
 */
import { Event, MoELayer, Stream, Tensor } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { layerOptions, usualDtype } from '../layer-options.js'
import { inputCount } from '../limits.js'
import { median } from '../median.js'
import { Owned } from '../owned.js'
import { cellLogits } from '../random.js'
import type { Shape } from '../shapes.js'
import { type RatioInterval, ratioOfMedians } from './statistics.js'

const strategies = ['fused', 'tiered', 'cooperative', 'auto'] as const
type Kind = (typeof strategies)[number]

export interface SkewOptions {
  readonly device: 'cpu' | 'cuda'
  readonly cells: readonly { readonly shape: Shape; readonly tokens: number; readonly skew: number }[]
  /** Interleaved rounds of a cell, at least 200 for results. */
  readonly rounds: number
  readonly seed: number
  readonly onProgress: (line: string) => void
}

export interface SkewRow {
  readonly shape: string
  readonly tokens: number
  readonly skew: number
  readonly medianUs: Readonly<Record<Kind, number>>
  /** tiered / fused: below 1, slices pay. */
  readonly tieredToFused: RatioInterval
  readonly cooperativeToFused: RatioInterval
  /** auto / the better of fused and tiered. */
  readonly autoToBest: RatioInterval
  readonly autoChose: string
  readonly autoReason: string
  readonly slices: readonly {
    readonly name: string
    readonly sms: number
    readonly experts: number
    readonly enforcement: string
  }[]
}

export interface SkewResult {
  readonly kind: 'skew'
  readonly what: string
  readonly environment: Environment
  readonly rounds: number
  readonly seed: number
  readonly rows: readonly SkewRow[]
}

export async function skewBench(options: SkewOptions): Promise<SkewResult> {
  const rows: SkewRow[] = []
  for (const shape of new Set(options.cells.map((cell) => cell.shape))) {
    for (const { tokens, skew } of options.cells.filter((cell) => cell.shape === shape)) {
      const row = await cell(shape, tokens, skew, options)
      rows.push(row)
      const figures = strategies.map((kind) => `${kind} ${row.medianUs[kind].toFixed(1)}`).join(', ')
      options.onProgress(`${row.shape} ${tokens} tokens, skew ${skew}: ${figures} us; auto: ${row.autoReason}`)
    }
  }
  return {
    kind: 'skew',
    what: 'one layer under skewed routing by strategy: interleaved steps through the public layer API, graph replays, bf16',
    environment: environment(options.device),
    rounds: options.rounds,
    seed: options.seed,
    rows,
  }
}

async function cell(shape: Shape, tokens: number, skew: number, options: SkewOptions): Promise<SkewRow> {
  const { device, rounds, seed } = options
  const dtype = usualDtype(device)
  const common = { ...layerOptions(shape, device, dtype), graphs: { captureAfter: 1 } } as const
  using owned = new Owned()
  const { own } = owned
  const fused = own(await MoELayer.create({ ...common, seed }))
  const layers = { fused } as Record<Kind, MoELayer>
  for (const strategy of strategies) {
    if (strategy === 'fused') continue
    layers[strategy] = own(
      await MoELayer.create({ ...common, weightsFrom: fused, strategy, slices: { updateEverySteps: 16 } }),
    )
  }
  // One bias a cell: hot experts stay hot over all inputs.
  const count = inputCount(shape, tokens)
  const logits = cellLogits(tokens, shape.experts, count, skew, seed + tokens).map((each) =>
    own(Tensor.from(each, [tokens, shape.experts], { device })),
  )
  const xs = logits.map((_, v) => own(Tensor.randn([tokens, shape.hidden], { dtype, device, seed: seed + 77 * v })))
  const out = own(Tensor.empty([tokens, shape.hidden], { dtype, device }))
  const stream = Stream.default(device)
  const [start, end] = [own(Event.create(device)), own(Event.create(device))]
  const step = (kind: Kind, v: number) => {
    const x = xs[v % count]
    if (x) layers[kind].enqueue(x, { logits: logits[v % count], out })
  }
  for (let warm = 0; warm < 96; warm++) {
    for (const kind of strategies) step(kind, warm)
    if (warm % 8 === 7) await stream.synchronize()
  }
  const times: Record<Kind, number[]> = { fused: [], tiered: [], cooperative: [], auto: [] }
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < strategies.length; i++) {
      const kind = strategies[(i + round) % strategies.length] ?? 'fused'
      // One untimed step first: the timed one then starts from the state that its own kind leaves behind.
      step(kind, round)
      start.record(stream)
      step(kind, round + 1)
      end.record(stream)
      await stream.synchronize()
      times[kind].push(start.elapsedMs(end) * 1e3)
    }
  }
  const better = median(times.tiered) < median(times.fused) ? times.tiered : times.fused
  const stats = layers.auto.performanceStats()
  return {
    shape: shape.name,
    tokens,
    skew,
    medianUs: {
      fused: median(times.fused),
      tiered: median(times.tiered),
      cooperative: median(times.cooperative),
      auto: median(times.auto),
    },
    tieredToFused: ratioOfMedians(times.tiered, times.fused),
    cooperativeToFused: ratioOfMedians(times.cooperative, times.fused),
    autoToBest: ratioOfMedians(times.auto, better),
    autoChose: stats.strategy?.name ?? 'fused',
    autoReason: stats.strategy?.reason ?? '',
    slices: (layers.tiered.performanceStats().slices?.plan.slices ?? []).map((slice) => ({
      name: slice.name,
      sms: slice.grantedSms,
      experts: slice.experts.length,
      enforcement: slice.enforcement,
    })),
  }
}
