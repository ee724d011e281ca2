/**
 * Experts into slices and SMs to slices so that the slowest slice ends as soon as can be: the arithmetic that the built-in policies
 * share, and that one's own may use. They differ in the load that they believe in and in when they move.
 *
 * Experts are ranked by load and the ranking is cut: the first slice has the hottest, the last one queues the cold. Sizes and
 * cuts depend on each other; two rounds settle them: sizes for given cuts by giving each portion of SMs to the slice
 * that would end last (optimal for times that fall with SMs), cuts for given sizes by bisection over the ending time.
 * Prefix sums over the ranking make a slice's time a matter of one binary search: the hotter an expert, the more it computes
 * for each byte, so within a slice those bound by arithmetic come before those bound by memory.
 */
import { type CostModel, expertBytes, expertFlops, join, type Placement, predictStep } from './cost.js'
import { interpolate } from './device.js'
import type { Constraints } from './policy.js'

/** A placement and the step time that the cost model gives it under the load it was made for. */
export interface Arrangement extends Placement {
  readonly predictedUs: number
}

/** Slices that can be had: at most as asked, one for each expert, and each with the least SMs. At least 1. */
export function sliceCount(constraints: Constraints, experts: number): number {
  const units = Math.floor(constraints.sms / constraints.granularity)
  const least = Math.max(1, Math.ceil(constraints.minSms / constraints.granularity))
  return Math.max(1, Math.min(constraints.slices, experts, Math.floor(units / least)))
}

/**
 * The arrangement for a load.
 * @param load - assignments by expert; all 0 is taken for an even load
 */
export function arrange(load: ArrayLike<number>, constraints: Constraints, cost: CostModel | null): Arrangement {
  return new Arranger(load, constraints, cost).arrange()
}

/** Arrangements of one load; ranking the experts is half of the work and done once. */
export class Arranger {
  readonly #load: ArrayLike<number>
  readonly #constraints: Constraints
  readonly #cost: CostModel | null
  readonly #ranking: Ranking

  constructor(load: ArrayLike<number>, constraints: Constraints, cost: CostModel | null) {
    this.#load = load
    this.#constraints = constraints
    this.#cost = cost
    this.#ranking = new Ranking(anyPositive(load) ? load : new Float64Array(load.length).fill(1), cost)
  }

  /** Sizes and experts. */
  arrange(): Arrangement {
    const { sms } = this.#constraints
    const slices = sliceCount(this.#constraints, this.#load.length)
    if (slices === 1) return this.#place([sms], [0, this.#load.length])
    const ranking = this.#ranking
    const first = ranking.sizes(ranking.evenCuts(slices, sms), this.#constraints)
    return this.keeping(ranking.sizes(ranking.cuts(first), this.#constraints))
  }

  /** Experts only, for sizes that stay; no more slices than experts. */
  keeping(sms: readonly number[]): Arrangement {
    return this.#place(sms, this.#ranking.cuts(sms))
  }

  /**
   * As many cold experts as end within `limitUs` queued in one slice of `sms` SMs, the hot ones in a slice with nearly all the others: for work
   * that is bound by memory, the fewest SMs that wait for it. `null` where there is no room for it.
   */
  queued(sms: number, limitUs: number): Placement | null {
    const { sms: all, granularity, minSms } = this.#constraints
    const least = Math.max(1, Math.ceil(minSms / granularity)) * granularity
    const slices = sliceCount(this.#constraints, this.#load.length)
    const hot = all - sms - (slices - 2) * least
    if (slices < 2 || sms < least || hot < least || sms % granularity !== 0) return null
    const first = this.#ranking.tail(sms, limitUs, slices - 1)
    const sizes = Array.from({ length: slices }, (_, s) => (s === 0 ? hot : s === slices - 1 ? sms : least))
    // Those between have one expert each.
    const cuts = [0, ...sizes.slice(1).map((_, s) => first - (slices - 2 - s)), this.#load.length]
    return { sms: sizes, sliceOf: this.#slicesOf(cuts) }
  }

  #slicesOf(cuts: readonly number[]): number[] {
    const sliceOf = new Array<number>(this.#load.length).fill(0)
    for (let s = 0; s + 1 < cuts.length; s++) {
      for (let i = cuts[s] ?? 0; i < (cuts[s + 1] ?? 0); i++) sliceOf[this.#ranking.order[i] ?? 0] = s
    }
    return sliceOf
  }

  #place(sms: readonly number[], cuts: readonly number[]): Arrangement {
    const sliceOf = this.#slicesOf(cuts)
    return { sms: [...sms], sliceOf, predictedUs: predictStep(this.#cost, this.#load, { sms, sliceOf }).stepUs }
  }
}

function anyPositive(load: ArrayLike<number>): boolean {
  for (let e = 0; e < load.length; e++) if ((load[e] ?? 0) > 0) return true
  return false
}

/** Experts by descending load (equal loads: the lower number first). */
function rank(load: ArrayLike<number>): Int32Array {
  const experts = load.length
  const order = new Int32Array(experts)
  let largest = 0
  for (let e = 0; e < experts; e++) largest = Math.max(largest, load[e] ?? 0)
  // Load to 1 part in 2^30 and the number packed into one double, exactly: sorting doubles is several times faster than a comparator.
  const scale = 2 ** 30 / largest
  const keys = new Float64Array(experts)
  for (let e = 0; e < experts; e++) keys[e] = Math.floor((largest - (load[e] ?? 0)) * scale) * experts + e
  keys.sort()
  for (let i = 0; i < experts; i++) order[i] = (keys[i] ?? 0) % experts
  return order
}

class Ranking {
  readonly order: Int32Array
  readonly #cost: CostModel | null
  readonly #together: boolean
  readonly #exposed: number
  readonly #bytes: Float64Array
  readonly #flops: Float64Array
  /** Prefix sums, one longer than the experts. */
  readonly #bytesBefore: Float64Array
  readonly #flopsBefore: Float64Array
  readonly #overheadBefore: Float64Array

  constructor(load: ArrayLike<number>, cost: CostModel | null) {
    const experts = load.length
    this.#cost = cost
    this.#together = cost?.overlap === 'slice'
    this.#exposed = cost?.exposed ?? 0
    this.order = rank(load)
    this.#bytes = new Float64Array(experts)
    this.#flops = new Float64Array(experts)
    this.#bytesBefore = new Float64Array(experts + 1)
    this.#flopsBefore = new Float64Array(experts + 1)
    this.#overheadBefore = new Float64Array(experts + 1)
    for (let i = 0; i < experts; i++) {
      const a = load[this.order[i] ?? 0] ?? 0
      const bytes = cost === null ? 0 : expertBytes(cost, a)
      const flops = cost === null ? a : expertFlops(cost, a)
      this.#bytes[i] = bytes
      this.#flops[i] = flops
      this.#bytesBefore[i + 1] = (this.#bytesBefore[i] ?? 0) + bytes
      this.#flopsBefore[i + 1] = (this.#flopsBefore[i] ?? 0) + flops
      this.#overheadBefore[i + 1] =
        (this.#overheadBefore[i] ?? 0) + (cost === null ? 0 : cost.overheadUs * Math.min(1, a))
    }
  }

  /** Microseconds a byte and an operation take on so many SMs. */
  #speed(sms: number): readonly [perByte: number, perFlop: number] {
    if (this.#cost === null) return [0, 1 / sms]
    return [1e6 / interpolate(this.#cost.bandwidth, sms), 1e6 / interpolate(this.#cost.rate, sms)]
  }

  /** First of the ranking that is bound by memory at this speed. */
  #boundary([perByte, perFlop]: readonly [number, number]): number {
    let low = 0
    let high = this.order.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#bytes[middle] ?? 0) * perByte > (this.#flops[middle] ?? 0) * perFlop) high = middle
      else low = middle + 1
    }
    return low
  }

  #time(from: number, to: number, speed: readonly [number, number], boundary: number): number {
    const [perByte, perFlop] = speed
    const overhead = (this.#overheadBefore[to] ?? 0) - (this.#overheadBefore[from] ?? 0)
    if (this.#together) {
      const bytes = (this.#bytesBefore[to] ?? 0) - (this.#bytesBefore[from] ?? 0)
      const flops = (this.#flopsBefore[to] ?? 0) - (this.#flopsBefore[from] ?? 0)
      return join(bytes * perByte, flops * perFlop, this.#exposed) + overhead
    }
    const split = Math.min(to, Math.max(from, boundary))
    const flops = (this.#flopsBefore[split] ?? 0) - (this.#flopsBefore[from] ?? 0)
    const bytes = (this.#bytesBefore[to] ?? 0) - (this.#bytesBefore[split] ?? 0)
    const longer = flops * perFlop + bytes * perByte + overhead
    if (this.#exposed === 0) return longer
    const hiddenBytes = (this.#bytesBefore[split] ?? 0) - (this.#bytesBefore[from] ?? 0)
    const hiddenFlops = (this.#flopsBefore[to] ?? 0) - (this.#flopsBefore[split] ?? 0)
    return longer + this.#exposed * (hiddenBytes * perByte + hiddenFlops * perFlop)
  }

  /** Cuts that give each slice the same part of the work on the whole device, and at least one expert. */
  evenCuts(slices: number, sms: number): number[] {
    const experts = this.order.length
    const speed = this.#speed(sms)
    const boundary = this.#boundary(speed)
    const total = this.#time(0, experts, speed, boundary)
    const cuts = [0]
    for (let s = 1; s < slices; s++) {
      let low = (cuts[s - 1] ?? 0) + 1
      let high = experts - (slices - s)
      while (low < high) {
        const middle = (low + high) >> 1
        if (this.#time(0, middle, speed, boundary) < (total * s) / slices) low = middle + 1
        else high = middle
      }
      cuts.push(low)
    }
    cuts.push(experts)
    return cuts
  }

  /** Where the coldest begin that so many SMs do within a time; `from` hotter ones and one of the coldest at least. */
  tail(sms: number, limitUs: number, from: number): number {
    const experts = this.order.length
    const speed = this.#speed(sms)
    const boundary = this.#boundary(speed)
    let low = from
    let high = experts - 1
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#time(middle, experts, speed, boundary) <= limitUs) high = middle
      else low = middle + 1
    }
    return low
  }

  /** Sizes for given cuts. */
  sizes(cuts: readonly number[], { sms, granularity, minSms }: Constraints): number[] {
    const slices = cuts.length - 1
    const least = Math.max(1, Math.ceil(minSms / granularity))
    const time = (s: number, n: number) => {
      const speed = this.#speed(n)
      return this.#time(cuts[s] ?? 0, cuts[s + 1] ?? 0, speed, this.#boundary(speed))
    }
    const result = new Array<number>(slices).fill(slices === 1 ? sms : least * granularity)
    if (slices === 1) return result
    const times = result.map((n, s) => time(s, n))
    let left = sms - slices * least * granularity
    while (left > 0) {
      const portion = left >= granularity ? granularity : left
      let slowest = 0
      for (let s = 1; s < slices; s++) if ((times[s] ?? 0) > (times[slowest] ?? 0)) slowest = s
      result[slowest] = (result[slowest] ?? 0) + portion
      times[slowest] = time(slowest, result[slowest] ?? 1)
      left -= portion
    }
    return result
  }

  /** Cuts for given sizes: the earliest ending time at which all experts fit, by bisection; every slice has one. */
  cuts(sms: readonly number[]): number[] {
    const experts = this.order.length
    const slices = sms.length
    const speeds = sms.map((n) => this.#speed(n))
    const boundaries = speeds.map((speed) => this.#boundary(speed))
    const time = (s: number, from: number, to: number) => this.#time(from, to, speeds[s] ?? [0, 0], boundaries[s] ?? 0)
    const fill = (limit: number, cuts: number[]) => {
      cuts[0] = 0
      let from = 0
      for (let s = 0; s < slices; s++) {
        // The rest of the slices get at least one each.
        let low = from + 1
        let high = experts - (slices - 1 - s)
        while (low < high) {
          const middle = (low + high + 1) >> 1
          if (time(s, from, middle) <= limit) low = middle
          else high = middle - 1
        }
        if (time(s, from, low) > limit) return false
        cuts[s + 1] = low
        from = low
      }
      return from === experts
    }
    // `high` is late enough; `low` is when slices that all had the same mix of work would end.
    let low = 0
    let high = 0
    for (let s = 0; s < slices; s++) {
      const all = time(s, 0, experts)
      high = Math.max(high, all)
      low += 1 / all
    }
    low = 1 / low
    const best = new Array<number>(slices + 1).fill(0)
    const tried = [...best]
    fill(high, best)
    best[slices] = experts
    // Slices with the work that suits them can be sooner than that.
    while (fill(low, tried)) {
      high = low
      for (let s = 0; s <= slices; s++) best[s] = tried[s] ?? 0
      low *= 0.9
    }
    // Steps up from the least time in small strides find a close upper bound quickly: most loads can be cut almost evenly.
    for (let stride = 1.02; low * stride < high; stride = 1 + (stride - 1) * 3) {
      if (!fill(low * stride, tried)) continue
      high = low * stride
      for (let s = 0; s <= slices; s++) best[s] = tried[s] ?? 0
      break
    }
    for (let i = 0; i < 12 && high - low > 5e-4 * high; i++) {
      const middle = (low + high) / 2
      if (fill(middle, tried)) {
        high = middle
        for (let s = 0; s <= slices; s++) best[s] = tried[s] ?? 0
      } else low = middle
    }
    return best
  }
}
