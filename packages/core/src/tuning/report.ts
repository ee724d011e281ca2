/** What `tune` found: by cell for people, and as the file that is loaded. */
import type { DeviceName } from '@nexus/native'
import { call, deviceIndex, nativeVersion } from '../native.js'
import type { Cell } from './cell.js'
import { medianOf, type OrderPrice, orderPrices } from './decide.js'
import { type TuneDevice, tuneDevice } from './in-force.js'
import type { LoadName } from './linear-bench.js'
import type { LinearSpec } from './linears.js'
import { type TunedLinear, type TuneFile, tuneSchema } from './tune-file.js'

/** One linear layer at one bucket. */
export interface TunedCell {
  readonly linear: string
  readonly tokens: number
  readonly rows: number
  readonly candidates: readonly {
    readonly name: string
    /** Order of its sums; '' where it changes with the rows. */
    readonly order: string
    /** Medians in microseconds. */
    readonly evenUs: number
    readonly skewedUs: number
    readonly samples: number
  }[]
  readonly heuristic: string
  /** The heuristic's variant stands for a step of kernels of its own, which is not what was timed: it stays. */
  readonly fusedStep: boolean
  readonly chosen: string
  /** The heuristic's time over the chosen one's. */
  readonly speedup: number
  /** By how much a variant had to be faster, relatively. */
  readonly noise: number
  /** The time of the fastest variant of the linear layer's batch-invariant order over the chosen one's; 1 is free, `null` without an order. */
  readonly invariantPrice: number | null
}

export interface TuneReport {
  readonly device: TuneDevice
  readonly cells: readonly TunedCell[]
  /** By linear layer, the order of sums that `deterministic: 'batch-invariant'` will keep to, with its mean price over the buckets. */
  readonly invariant: readonly { readonly linear: string; readonly order: string; readonly meanPrice: number }[]
  /** What the time did not reach. */
  readonly skipped: readonly { readonly linear: string; readonly tokens: number }[]
  readonly elapsedMs: number
  /** What `saveTuning` writes. */
  readonly file: TuneFile
}

/** More rows than any order without a kernel for many rows can take. */
const manyRows = 2 ** 16

/** What was found, for people and for the file. */
export function report(
  found: readonly { readonly linear: LinearSpec; readonly cells: readonly Cell[] }[],
  { device, skipped, elapsedMs }: { device: DeviceName; skipped: TuneReport['skipped']; elapsedMs: number },
): TuneReport {
  const site = tuneDevice(device)
  const cells: TunedCell[] = []
  const linears: TunedLinear[] = []
  const invariant: { linear: string; order: string; meanPrice: number }[] = []
  for (const { linear, cells: measured } of found) {
    if (measured.length === 0) continue
    const cheapest = cheapestOrder(linear, measured, device)
    if (cheapest !== undefined) invariant.push({ linear: linear.name, order: cheapest.order, meanPrice: cheapest.mean })
    for (const [i, cell] of measured.entries()) cells.push(tunedCell(linear, cell, cheapest?.prices[i] ?? null))
    const { dtype, numExperts, k, n, gated } = linear
    linears.push({ dtype, numExperts, k, n, gated, order: orderOf(cheapest), rows: measured.map(tunedRows) })
  }
  const file: TuneFile = {
    schema: tuneSchema,
    ...site,
    nexus: nativeVersion(),
    source: `tune, ${new Date().toISOString()}`,
    linears,
  }
  return { device: site, cells, invariant, skipped, elapsedMs, file }
}

const orderOf = (cheapest: OrderPrice | undefined): string | null => cheapest?.order ?? null

/** Another order than the default one must be cheaper by more than what such measurements can tell apart. */
const leastOrderGain = 0.02

/** Among the orders that have a variant for any number of rows. */
function cheapestOrder(linear: LinearSpec, cells: readonly Cell[], device: DeviceName): OrderPrice | undefined {
  const all = call((b) => b.routerKernels.candidates(deviceIndex(device), linear.raw, manyRows))
  const prices = orderPrices(cells, new Set(all.map(({ order }) => order).filter((order) => order !== '')))
  const usual = prices.find(({ order }) => order === all.find(({ invariant }) => invariant)?.order)
  const [cheapest] = prices
  if (cheapest === undefined || usual === undefined) return cheapest
  return cheapest.mean < usual.mean * (1 - leastOrderGain) ? cheapest : usual
}

const tenths = (us: number): number => Math.round(us * 1e3) / 1e3

function tunedRows({ rows, measured, decision }: Cell): TunedLinear['rows'][number] {
  const times = (load: LoadName) => Object.fromEntries(measured.map((m) => [m.name, tenths(medianOf(m[load]))]))
  return {
    rows,
    variants: decision.variants,
    heuristic: decision.heuristic,
    evenUs: times('even'),
    skewedUs: times('skewed'),
  }
}

function tunedCell(
  linear: LinearSpec,
  { tokens, rows, measured, decision }: Cell,
  invariantPrice: number | null,
): TunedCell {
  const { heuristic, chosen, speedup, noise } = decision
  const candidates = measured.map(({ name, order, even, skewed }) => ({
    name,
    order,
    evenUs: tenths(medianOf(even)),
    skewedUs: tenths(medianOf(skewed)),
    samples: even.length,
  }))
  const fusedStep = measured.some((m) => m.heuristic && m.fusedStep)
  return { linear: linear.name, tokens, rows, candidates, heuristic, fusedStep, chosen, speedup, noise, invariantPrice }
}
