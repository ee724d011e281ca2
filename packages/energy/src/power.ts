/**
 * The price list of a device: what time, bytes and operations cost. Known for an H200, and fitted to measurements for any other device: a few
 * windows of different work are enough, for the energy is a sum.
 */
import { checkNumber, checkOptions, describe } from '@nexus/native'

/** Prices, as plain data; `policies.adaptive` of @nexus/slices takes it as it is, and so does `attribute` two of its fields. */
export interface PowerModel {
  /** Of the device with nothing to do. */
  readonly idleWatts: number
  /** Of a byte from or to device memory. */
  readonly joulesPerByte: number
  /** Of a floating-point operation. */
  readonly joulesPerFlop: number
  /**
   * Of an SM that has work, beyond its bytes and operations.
   * @default 0
   */
  readonly smWatts?: number
}

/**
 * Measured. `h200`: 84 to 131 W with nothing to do; memory-bound work at 570 to 670 W and 7.0 to 7.4 GB/J whatever the number of SMs above 24, so
 * 4.65 TB/s at 7.2 GB/J less the idle power is 1.16e-10 J a byte, and an SM costs too little of its own to be told from that. The price
 * of an operation is an upper estimate: about 620 TFLOP/s of bf16 near the limit of 700 W.
 */
export const powerModels = {
  h200: { idleWatts: 107, joulesPerByte: 1.16e-10, joulesPerFlop: 9e-13 },
} as const satisfies Record<string, PowerModel>

/** One window of work, and what it took. */
export interface PowerObservation {
  readonly joules: number
  readonly seconds: number
  readonly bytes: number
  readonly flops: number
  /** SMs with work × seconds. In all observations or in none. */
  readonly smSeconds?: number
}

export interface FitPowerOptions {
  /** Prices that are known already, such as the idle power that `measureIdle` found; they are not fitted. */
  readonly known?: Partial<PowerModel>
}

export interface PowerFit {
  readonly model: PowerModel
  /** predicted / measured - 1, by observation. */
  readonly errors: readonly number[]
  readonly maxError: number
}

const terms = ['idleWatts', 'joulesPerByte', 'joulesPerFlop', 'smWatts'] as const
type Term = (typeof terms)[number]
const observed = { idleWatts: 'seconds', joulesPerByte: 'bytes', joulesPerFlop: 'flops', smWatts: 'smSeconds' } as const

/** Joules of work by these prices. */
export function modelledEnergy(model: PowerModel, work: Omit<PowerObservation, 'joules'>): number {
  let sum = 0
  for (const term of terms) sum += (model[term] ?? 0) * (work[observed[term]] ?? 0)
  return sum
}

/**
 * The prices that explain the observations best: least squares of the relative errors, none below 0.
 * @throws TypeError, RangeError naming what is wrong, and where the observations cannot tell two prices apart: then measure other work as well
 * (nothing at all, reading memory, computing), or give one of them as known
 */
export function fitPower(observations: readonly PowerObservation[], options: FitPowerOptions = {}): PowerFit {
  checkOptions('options', options, ['known'])
  checkOptions('options.known', options.known, terms)
  const given = options.known ?? {}
  const known: Partial<Record<Term, number>> = {}
  for (const term of terms) {
    const value = given[term]
    if (value !== undefined) known[term] = checkNumber(`options.known.${term}`, value, 0)
  }
  checkObservations(observations)
  const withSms = observations[0]?.smSeconds !== undefined
  const wanted = terms.filter((term) => known[term] === undefined && (term !== 'smWatts' || withSms))
  // Each row over its joules: a relative error counts the same in a short window and in a long one.
  const columns = wanted.map((term) => observations.map((o) => (o[observed[term]] ?? 0) / o.joules))
  const right = observations.map((o) => 1 - modelledEnergy(asModel(known), o) / o.joules)
  checkDetermined(wanted, columns)
  let best: { values: readonly number[]; loss: number } | null = null
  // Non-negative least squares: of all sets of prices above 0, the best that comes out so. They are at most four.
  for (let set = 0; set < 2 ** wanted.length; set++) {
    const chosen = columns.filter((_, i) => (set >> i) & 1)
    const solved = solve(chosen, right)
    if (solved === null || solved.some((value) => value < 0)) continue
    const loss = right.reduce((sum, r, k) => {
      const off = solved.reduce((value, price, i) => value + price * (chosen[i]?.[k] ?? 0), -r)
      return sum + off * off
    }, 0)
    if (best !== null && loss >= best.loss * (1 - 1e-12)) continue
    let next = 0
    best = { values: wanted.map((_, i) => ((set >> i) & 1 ? (solved[next++] ?? 0) : 0)), loss }
  }
  const prices = { ...known }
  for (const [i, term] of wanted.entries()) prices[term] = best?.values[i] ?? 0
  const model = asModel(prices)
  const errors = observations.map((o) => modelledEnergy(model, o) / o.joules - 1)
  return { model, errors, maxError: Math.max(0, ...errors.map(Math.abs)) }
}

function asModel(prices: Partial<Record<Term, number>>): PowerModel {
  const { idleWatts = 0, joulesPerByte = 0, joulesPerFlop = 0, smWatts } = prices
  return { idleWatts, joulesPerByte, joulesPerFlop, ...(smWatts === undefined ? {} : { smWatts }) }
}

function checkObservations(observations: readonly PowerObservation[]): void {
  if (!Array.isArray(observations) || observations.length === 0) {
    throw new TypeError(`observations: expected an array of at least one, got ${describe(observations)}`)
  }
  for (const [i, observation] of observations.entries()) {
    const name = `observations[${i}]`
    checkOptions(name, observation, ['joules', 'seconds', 'bytes', 'flops', 'smSeconds'])
    for (const key of ['joules', 'seconds', 'bytes', 'flops'] as const)
      checkNumber(`${name}.${key}`, observation[key], 0)
    if (observation.joules === 0) throw new RangeError(`${name}.joules: expected more than 0, got 0`)
    if ((observation.smSeconds === undefined) !== (observations[0]?.smSeconds === undefined)) {
      throw new TypeError(`${name}.smSeconds: expected it in all observations or in none`)
    }
    if (observation.smSeconds !== undefined) checkNumber(`${name}.smSeconds`, observation.smSeconds, 0)
  }
}

/** By Gram and Schmidt: what is left of a column once the ones before it are taken out. */
function checkDetermined(wanted: readonly Term[], columns: readonly (readonly number[])[]): void {
  const basis: number[][] = []
  for (const [i, column] of columns.entries()) {
    const length = Math.sqrt(dot(column, column))
    let left = [...column]
    for (const unit of basis) {
      const along = dot(left, unit)
      left = left.map((value, k) => value - along * (unit[k] ?? 0))
    }
    const remaining = Math.sqrt(dot(left, left))
    const term = wanted[i] ?? 'idleWatts'
    if (length === 0) throw new RangeError(`observations: none has any ${observed[term]}, so ${term} cannot be known`)
    if (remaining < 1e-6 * length) {
      const others = wanted.slice(0, i).join(', ')
      throw new RangeError(`observations: ${term} cannot be told from ${others}; measure other kinds of work as well`)
    }
    basis.push(left.map((value) => value / remaining))
  }
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, x, i) => sum + x * (b[i] ?? 0), 0)
}

/** The least-squares solution, by the normal equations of columns of length 1; `null` where it is not unique. */
function solve(columns: readonly (readonly number[])[], right: readonly number[]): number[] | null {
  const lengths = columns.map((column) => Math.sqrt(dot(column, column)))
  const units = columns.map((column, i) => column.map((value) => value / (lengths[i] ?? 1)))
  const rows = units.map((a) => [...units.map((b) => dot(a, b)), dot(a, right)])
  const n = rows.length
  for (let k = 0; k < n; k++) {
    const head = rows[k]?.[k] ?? 0
    if (head < 1e-12) return null
    for (let i = 0; i < n; i++) {
      if (i === k) continue
      const factor = (rows[i]?.[k] ?? 0) / head
      rows[i] = (rows[i] ?? []).map((value, j) => value - factor * (rows[k]?.[j] ?? 0))
    }
  }
  return rows.map((row, i) => (row[n] ?? 0) / (row[i] ?? 1) / (lengths[i] ?? 1))
}
