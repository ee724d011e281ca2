/** What `tune` found: by cell for people, and as the file that is loaded. */
import type { DeviceName } from '@nexus/native'
import { call, deviceIndex, nativeVersion } from '../native.js'
import type { Cell } from './cell.js'
import { medianOf, type OrderPrice, orderPrices, ranked, type Timed } from './decide.js'
import { type TuneDevice, tuneDevice } from './in-force.js'
import type { LinearSpec } from './linears.js'
import type { LoadName } from './series.js'
import type { Step } from './step.js'
import { type TunedLinear, type TuneFile, tuneSchema } from './tune-file.js'

/** One linear layer at one bucket. */
export interface TunedCell {
  readonly linear: string
  readonly tokens: number
  readonly rows: number
  /** Each alone. */
  readonly candidates: readonly ({
    readonly name: string
    /** Order of its sums; '' where it changes with the rows. */
    readonly order: string
  } & TunedTimes)[]
  readonly heuristic: string
  /** With the heuristic's variants a step runs as kernels of its own, which is not what was timed alone; it is what `steps` has. */
  readonly fusedStep: boolean
  /** What the step chose: not always the fastest alone. The heuristic's where the time did not reach the step. */
  readonly chosen: string
  /** Of the whole step: its time with the heuristic's variants over that with the chosen ones. */
  readonly speedup: number
  /** By how much a step had to be faster, relatively; `null` where the time did not reach it. */
  readonly noise: number | null
  /**
   * The time of the fastest variant of the linear layer's batch-invariant order over the chosen one's, each alone; 1 is free, `null` without an
   * order.
   */
  readonly invariantPrice: number | null
}

/** Medians in microseconds, by an even load and by a skewed one. */
export interface TunedTimes {
  readonly evenUs: number
  readonly skewedUs: number
  readonly samples: number
}

/** Whole steps at one bucket: which variants the linear layers of one MLP are to have, together. */
export interface TunedStep {
  /** 'experts' or 'shared'. */
  readonly mlp: string
  readonly tokens: number
  /** Names of the linear layers, in the order of the variants. */
  readonly linears: readonly string[]
  /** The heuristic's first. With 'shared', the experts have what was chosen for them. */
  readonly pairs: readonly ({ readonly variants: readonly string[] } & TunedTimes)[]
  readonly heuristic: readonly string[]
  readonly chosen: readonly string[]
  /** The heuristic's time over the chosen one's. */
  readonly speedup: number
  /** By how much a pair had to be faster, relatively. */
  readonly noise: number
}

/** What `tune` measured and decided. */
export interface TuneReport {
  readonly device: TuneDevice
  readonly cells: readonly TunedCell[]
  readonly steps: readonly TunedStep[]
  /** By linear layer, the order of sums that `deterministic: 'batch-invariant'` will keep to, with its mean price over the buckets. */
  readonly invariant: readonly { readonly linear: string; readonly order: string; readonly meanPrice: number }[]
  /** What the time did not reach: linear layers, and steps such as 'experts step'. What has no step is not in the file. */
  readonly skipped: readonly { readonly linear: string; readonly tokens: number }[]
  readonly elapsedMs: number
  /** What `saveTuning` writes. */
  readonly file: TuneFile
}

/** More rows than any order without a kernel for many rows can take. */
const manyRows = 2 ** 16

/** What was measured. */
export interface Found {
  readonly cells: readonly Cell[]
  readonly steps: readonly Step[]
  readonly skipped: TuneReport['skipped']
}

/** What was found, for people and for the file; cells by linear layer. */
export function report(
  linearsOfLayer: readonly LinearSpec[],
  found: Found,
  { device, elapsedMs }: { readonly device: DeviceName; readonly elapsedMs: number },
): TuneReport {
  const site = tuneDevice(device)
  const cells: TunedCell[] = []
  const linears: TunedLinear[] = []
  const invariant: { linear: string; order: string; meanPrice: number }[] = []
  for (const linear of linearsOfLayer) {
    const measured = found.cells.filter((cell) => cell.linear === linear).map((cell) => chosenFor(cell, found.steps))
    if (measured.length === 0) continue
    const cheapest = cheapestOrder(linear, measured, device)
    if (cheapest !== undefined) invariant.push({ linear: linear.name, order: cheapest.order, meanPrice: cheapest.mean })
    for (const [i, cell] of measured.entries()) cells.push(tunedCell(cell, cheapest?.prices[i] ?? null))
    const rows = measured.filter(({ step }) => step !== null).map(tunedRows)
    const { dtype, numExperts, k, n, gated } = linear
    if (rows.length > 0) linears.push({ dtype, numExperts, k, n, gated, order: orderOf(cheapest), rows })
  }
  const file: TuneFile = {
    schema: tuneSchema,
    ...site,
    nexus: nativeVersion(),
    source: `tune, ${new Date().toISOString()}`,
    linears,
  }
  return { device: site, cells, steps: found.steps.map(tunedStep), invariant, skipped: found.skipped, elapsedMs, file }
}

/** A cell and what its step made of it. */
interface ChosenCell extends Cell {
  readonly step: Step | null
  readonly heuristic: string
  readonly chosen: string
}

function chosenFor(cell: Cell, steps: readonly Step[]): ChosenCell {
  const step = steps.find(({ cells }) => cells.includes(cell)) ?? null
  const heuristic = cell.measured.find((m) => m.heuristic)?.name ?? ''
  return { ...cell, step, heuristic, chosen: step?.chosen[step.cells.indexOf(cell)] ?? heuristic }
}

const orderOf = (cheapest: OrderPrice | undefined): string | null => cheapest?.order ?? null

/** Another order than the default one must be cheaper by more than what such measurements can tell apart. */
const leastOrderGain = 0.02

/** Among the orders that have a variant for any number of rows. */
function cheapestOrder(linear: LinearSpec, cells: readonly ChosenCell[], device: DeviceName): OrderPrice | undefined {
  const all = call((b) => b.routerKernels.candidates(deviceIndex(device), linear.raw, manyRows))
  const prices = orderPrices(cells, new Set(all.map(({ order }) => order).filter((order) => order !== '')))
  const usual = prices.find(({ order }) => order === all.find(({ invariant }) => invariant)?.order)
  const [cheapest] = prices
  if (cheapest === undefined || usual === undefined) return cheapest
  return cheapest.mean < usual.mean * (1 - leastOrderGain) ? cheapest : usual
}

/** To a nanosecond. */
const rounded = (us: number): number => Math.round(us * 1e3) / 1e3

const timesOf = ({ even, skewed }: Timed): TunedTimes => ({
  evenUs: rounded(medianOf(even)),
  skewedUs: rounded(medianOf(skewed)),
  samples: even.length,
})

function tunedRows({ rows, measured, heuristic, chosen }: ChosenCell): TunedLinear['rows'][number] {
  const times = (load: LoadName) => Object.fromEntries(measured.map((m) => [m.name, rounded(medianOf(m[load]))]))
  const others = ranked(measured).filter(({ name }) => name !== chosen)
  return {
    rows,
    variants: [chosen, ...others.map(({ name }) => name)],
    heuristic,
    evenUs: times('even'),
    skewedUs: times('skewed'),
  }
}

function tunedCell(cell: ChosenCell, invariantPrice: number | null): TunedCell {
  const { linear, tokens, rows, measured, heuristic, chosen, step } = cell
  return {
    linear: linear.name,
    tokens,
    rows,
    candidates: measured.map((m) => ({ name: m.name, order: m.order, ...timesOf(m) })),
    heuristic,
    fusedStep: measured.some((m) => m.heuristic && m.fusedStep),
    chosen,
    speedup: step?.decision.speedup ?? 1,
    noise: step?.decision.noise ?? null,
    invariantPrice,
  }
}

function tunedStep({ mlp, tokens, cells, measured, decision, chosen }: Step): TunedStep {
  return {
    mlp,
    tokens,
    linears: cells.map(({ linear }) => linear.name),
    pairs: measured.map((m) => ({ variants: m.pair, ...timesOf(m) })),
    heuristic: measured.find((m) => m.heuristic)?.pair ?? [],
    chosen,
    speedup: decision.speedup,
    noise: decision.noise,
  }
}
