/**
 * One cell: a shape at a token count and a skew, timed through the public layer API from (x, router logits) to y, and once more with the router's
 * own product in the step.
 *
 * Correctness first: some rows against float64 on the host, every row against a float32 layer with the same weights, and nothing that is wrong
 * is timed. Then steps rotate over inputs, and over copies of small models: all of them in one graph, as the peers are timed and as a model of
 * many layers runs, and once more each by a launch of its own, from the layer's cache of graphs.
 */
import { type MoELayer, Stream, Tensor } from '@nexus/core'
import { inputCount, limitUs } from '../limits.js'
import { median } from '../median.js'
import { Owned } from '../owned.js'
import { cellBias, cellLogits } from '../random.js'
import { type Timing, timeCalls, timeReplays } from '../timing.js'
import type { Cell } from './cells.js'
import { CellCheck, errorToF32 } from './check.js'
import type { ShapeLayers } from './shape-layers.js'

/** A row of the result. Times are microseconds. */
export interface LayerRow {
  readonly shape: string
  readonly tokens: number
  readonly skew: number
  /** Experts that got a token, in the mean over the inputs. */
  readonly expertsHit: number
  /** By this row's own `expertsHit`. */
  readonly limitUs: number
  /**
   * With `launch` 'graph': a step of one graph that holds the steps of all inputs, repeated until there are 8 where they are short, timed for as
   * long and as long behind single steps as the peers are (files without `nexusStepUs`: as that says). With 'eager': a step that is launched one operation at a time.
   */
  readonly nexusUs: number
  readonly nexusMinUs: number
  readonly nexusMaxUs: number
  /** The 95 % interval of the median. */
  readonly nexusIntervalUs?: readonly [low: number, high: number]
  /**
   * A step of a launch of its own, by the layer's cache of graphs: what a caller gets who does not record a graph. Its graph takes any number of
   * tokens and any tensors, so that beside the launch it has the node that says which. Absent where the cache did not replay.
   */
  readonly nexusStepUs?: number
  /** Timed as `nexusUs`, with the router's own product in the step, logits of the same distribution. */
  readonly nexusWithRouterUs?: number
  /** Experts hit then. */
  readonly withRouterExpertsHit?: number
  /** Timed as `nexusUs`, with `deterministic: 'batch-invariant'`. */
  readonly nexusInvariantUs?: number
  /** Kernel variants then; where they are those of `variants`, it is free. */
  readonly invariantVariants?: readonly string[]
  /** Relative to float64 on `checkedRows` rows (files without them: relative to a float32 layer). */
  readonly relativeError: number
  readonly checkedRows?: number
  /** Relative to a float32 layer, all rows. */
  readonly relativeErrorToF32?: number
  /** nexusUs ÷ limitUs. */
  readonly ratio: number
  /** Of a step that is launched one operation at a time. */
  readonly phasesUs: { readonly router: number; readonly experts: number; readonly combine: number }
  readonly variants: readonly string[]
  /** How the steps of `nexusUs` were launched: by one graph, or one operation at a time. */
  readonly launch?: 'graph' | 'eager'
  /** By name; those that end in ' (anchor, scaled)' did not run in this call. */
  readonly peers: Readonly<Record<string, number>>
}

export interface CellOptions {
  readonly device: 'cpu' | 'cuda'
  readonly seed: number
  /** Roughly how long to time a cell's replays for; the peers' are timed for 150 ms. */
  readonly budgetMs: number
  /** Time one graph of all steps, else steps that are launched one operation at a time. @default true */
  readonly graphs?: boolean
  /** Called with the logits, for peers to read. */
  readonly onLogits?: (logits: readonly Float32Array[]) => void
}

export async function measureCell(layers: ShapeLayers, cell: Cell, options: CellOptions): Promise<LayerRow> {
  const { shape, tokens, skew } = cell
  const { device, seed, budgetMs, graphs = true } = options
  using owned = new Owned()
  const { own } = owned
  const count = inputCount(shape, tokens)
  const hostLogits = cellLogits(tokens, shape.experts, count, skew, seed + tokens)
  options.onLogits?.(hostLogits)
  const inputs = hostLogits.map((given, v) => ({
    layer: layers.layer(v),
    logits: own(Tensor.from(given, [tokens, shape.experts], { device })),
    x: own(Tensor.randn([tokens, shape.hidden], { dtype: 'bf16', device, seed: seed + 77 * v + tokens })),
  }))
  const out = own(Tensor.empty([tokens, shape.hidden], { dtype: 'bf16', device }))
  const [first] = inputs
  const [firstLogits] = hostLogits
  if (!first || !firstLogits) throw new RangeError('inputs: expected at least one, got none')
  const stream = Stream.default(device)
  const given = inputs.map(({ layer, x, logits }) => new Step(layer, x, { logits, out }))
  const hit = await meanHit(given)
  const check = await CellCheck.of(layers, cell, first.x, firstLogits)
  const replaysBefore = first.layer.performanceStats().graphs?.hits ?? 0
  given[0]?.enqueue()
  const relativeError = await check.error(out, 'the output')
  const relativeErrorToF32 = await errorToF32(layers.reference, first.x, first.logits, out)
  const each = await timeCalls(stream, callsOf(given), { budgetMs: budgetMs * singleShare })
  const { variants, graphs: cache } = first.layer.performanceStats()
  const replayed = (cache?.hits ?? 0) > replaysBefore
  const time: TimeSteps = graphs
    ? (steps, budget) => timeTogether(stream, steps, budget, each.medianUs)
    : (steps, budget) => timeCalls(stream, callsOf(steps), { budgetMs: budget })
  const timing = graphs ? await time(given, budgetMs) : each
  const phasesUs = await phases(layers, first.x, first.logits)

  const invariant =
    layers.invariant.length === 0 ? {} : await timeInvariant(layers, inputs, out, check, time, budgetMs / 2)

  const bias = cellBias(shape.experts, skew, seed + tokens)
  await layers.addToLogits(bias)
  const routed = inputs.map(({ layer, x }) => new Step(layer, x, { out }))
  const withRouterExpertsHit = await meanHit(routed)
  routed[0]?.enqueue()
  await (await CellCheck.ofProduct(layers, cell, first.x, bias)).error(out, "the output with the router's product")
  const withRouter = await time(routed, budgetMs / 2)

  const limit = limitUs(shape, tokens, hit)
  return {
    shape: shape.name,
    tokens,
    skew,
    expertsHit: hit,
    limitUs: limit,
    nexusUs: timing.medianUs,
    nexusMinUs: timing.minUs,
    nexusMaxUs: timing.maxUs,
    nexusIntervalUs: timing.intervalUs,
    ...(graphs && replayed && { nexusStepUs: each.medianUs }),
    nexusWithRouterUs: withRouter.medianUs,
    withRouterExpertsHit,
    ...invariant,
    relativeError,
    checkedRows: check.rows.length,
    relativeErrorToF32,
    ratio: timing.medianUs / limit,
    phasesUs,
    variants: variants.experts,
    launch: graphs ? 'graph' : 'eager',
    peers: {},
  }
}

/** One input with the layer that serves it. */
class Step {
  constructor(
    readonly layer: MoELayer,
    readonly x: Tensor,
    readonly options: { readonly logits?: Tensor; readonly out: Tensor },
  ) {}

  enqueue(): void {
    this.layer.enqueue(this.x, this.options)
  }

  /** Of the output. */
  async bytes(): Promise<Buffer> {
    const { buffer, byteOffset, byteLength } = await this.options.out.toArray()
    return Buffer.from(buffer, byteOffset, byteLength)
  }

  async expertsHit(): Promise<number> {
    return (await this.layer.forward(this.x, this.options)).stats.activeExperts
  }
}

/** How the steps of a cell are timed. */
type TimeSteps = (steps: readonly Step[], budgetMs: number) => Promise<Timing>

/** Of the budget: single steps, which the peers' harness times for 80 ms ahead of 150 ms of replays. */
const singleShare = 80 / 150
/** Steps of a graph, as in the peers' harness. */
const leastSteps = 8
/** From here on a step is long enough to be in its graph once. */
const longUs = 2000

/**
 * One graph of all steps, in turn.
 * @throws RangeError where its last step does not leave the bytes that the same step leaves by itself
 */
async function timeTogether(stream: Stream, steps: readonly Step[], budgetMs: number, stepUs: number): Promise<Timing> {
  const repeats = stepUs < longUs ? Math.max(1, Math.ceil(leastSteps / steps.length)) : 1
  const timing = await timeReplays(stream, callsOf(steps), { budgetMs, repeats })
  const last = steps.at(-1)
  if (last !== undefined) {
    const together = await last.bytes()
    last.enqueue()
    if (Buffer.compare(together, await last.bytes()) !== 0) {
      throw new RangeError('a step in a graph of many has other bytes than by itself')
    }
  }
  return timing
}

const callsOf = (steps: readonly Step[]) => steps.map((step) => () => step.enqueue())

/** Experts hit by each step, in the mean; the steps are warm afterwards, and recorded where graphs are on. */
async function meanHit(steps: readonly Step[]): Promise<number> {
  let hit = 0
  for (const step of steps) {
    hit += (await step.expertsHit()) / steps.length
    await step.expertsHit()
  }
  return hit
}

/** The same steps by the batch-invariant layers: warmed up, checked, timed. */
async function timeInvariant(
  { invariant }: ShapeLayers,
  inputs: readonly { readonly x: Tensor; readonly logits: Tensor }[],
  out: Tensor,
  check: CellCheck,
  time: TimeSteps,
  budgetMs: number,
) {
  const steps = inputs.flatMap(({ x, logits }, v) => {
    const layer = invariant[v % invariant.length]
    return layer === undefined ? [] : [new Step(layer, x, { logits, out })]
  })
  for (let warm = 0; warm < 2; warm++) for (const step of steps) step.enqueue()
  steps[0]?.enqueue()
  await check.error(out, 'the batch-invariant output')
  const { medianUs } = await time(steps, budgetMs)
  const variants = steps[0]?.layer.performanceStats().variants.experts ?? []
  return { nexusInvariantUs: medianUs, invariantVariants: variants }
}

/** Times of the phases in a warm step. */
async function phases({ plain }: ShapeLayers, x: Tensor, logits: Tensor) {
  const us = (ms: number | null) => (ms === null ? Number.NaN : ms * 1e3)
  const times = { router: [] as number[], experts: [] as number[], combine: [] as number[] }
  for (let i = 0; i < 6; i++) {
    const { output, stats } = await plain.forward(x, { logits })
    output.dispose()
    // The first step sets up what later ones find.
    if (i === 0) continue
    times.router.push(us(stats.times.routerMs))
    times.experts.push(us(stats.times.expertsMs))
    times.combine.push(us(stats.times.combineMs))
  }
  return { router: median(times.router), experts: median(times.experts), combine: median(times.combine) }
}
