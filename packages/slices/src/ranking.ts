/**
 * A ranking of experts by load that is cut into slices: which sizes suit given cuts, and which cuts suit given sizes.
 *
 * Prefix sums over the ranking make a slice's time a matter of one subtraction: the hotter an expert, the more it computes for each byte, so within
 * a slice those bound by arithmetic come before those bound by memory. A slice's time never falls with one expert more, and cuts are found by it.
 */
import type { Constraints } from './policy.js'
import type { Speed, Workload } from './predict.js'
import { Ranker } from './rank.js'
import { join } from './roofline.js'

/** Numbers of one place in the prefix sums; the last is not used. */
const stride = 4

/** Attempts that aim at the earliest time before it is searched for. */
const mostAims = 6
/** Of a time: just below it, and so little below that this is tried at once. */
const below = 1 - 1e-12
const near = 1 - 5e-4
const idle: Speed = { bandwidth: 0, perByte: 0, perFlop: 0, boundary: 0, since: 0 }

export class Ranking {
  /** Experts by descending load. As long as the most experts that were ranked. */
  get order(): Int32Array {
    return this.#ranker.order
  }
  readonly #ranker = new Ranker()
  #experts = 0
  #work: Workload | null = null
  #together = false
  #exposed = 0
  /** Prefix sums over the ranking, one longer than the experts: bytes, operations and overheads, beside each other since they are asked for together. */
  #before = new Float64Array(stride)
  // Of the last attempt to cut.
  #reachedUs = 0
  #lastUs = 0
  #missedUs = 0
  #tried = new Int32Array(0)

  /** Ranks a workload; it must not change while this is asked about it. */
  rank(work: Workload): void {
    const { experts, cost } = work
    this.#work = work
    this.#experts = experts
    this.#together = cost?.overlap === 'slice'
    this.#exposed = cost?.exposed ?? 0
    this.#ranker.rank(work)
    if (this.#before.length < stride * (experts + 1)) this.#before = new Float64Array(stride * (experts + 1))
    if (cost === null) this.#sumLoads(work)
    else this.#sum(work)
  }

  #sum({ bytes, flops, overheadUs }: Workload): void {
    const { order } = this.#ranker
    const before = this.#before
    const experts = this.#experts
    let byteSum = 0
    let flopSum = 0
    let overheadSum = 0
    for (let i = 0, at = stride; i < experts; i++, at += stride) {
      const e = order[i] ?? 0
      byteSum += bytes[e] ?? 0
      flopSum += flops[e] ?? 0
      overheadSum += overheadUs[e] ?? 0
      before[at] = byteSum
      before[at + 1] = flopSum
      before[at + 2] = overheadSum
    }
  }

  /** Without a cost model an assignment is one operation, and nothing is moved. */
  #sumLoads({ load }: Workload): void {
    const { order } = this.#ranker
    const before = this.#before
    const experts = this.#experts
    let total = 0
    for (let i = 0, at = stride; i < experts; i++, at += stride) {
      total += load[order[i] ?? 0] ?? 0
      before[at] = 0
      before[at + 1] = total
      before[at + 2] = 0
    }
  }

  #speed(sms: number): Speed {
    const speed = this.#work?.speed(sms) ?? idle
    if (speed.boundary < 0) speed.boundary = this.#together ? 0 : this.#boundary(speed)
    return speed
  }

  /** First of the ranking that is bound by memory at this speed. */
  #boundary({ perByte, perFlop }: Speed): number {
    const work = this.#work
    // Without a cost model nothing is.
    if (work === null || work.cost === null) return this.#experts
    const { bytes, flops } = work
    const { order } = this.#ranker
    let low = 0
    let high = this.#experts
    while (low < high) {
      const middle = (low + high) >> 1
      const e = order[middle] ?? 0
      if ((bytes[e] ?? 0) * perByte > (flops[e] ?? 0) * perFlop) high = middle
      else low = middle + 1
    }
    return low
  }

  #time(from: number, to: number, { perByte, perFlop, boundary }: Speed): number {
    const before = this.#before
    const first = stride * from
    const last = stride * to
    const overhead = (before[last + 2] ?? 0) - (before[first + 2] ?? 0)
    if (this.#together) {
      const bytes = (before[last] ?? 0) - (before[first] ?? 0)
      const flops = (before[last + 1] ?? 0) - (before[first + 1] ?? 0)
      return join(bytes * perByte, flops * perFlop, this.#exposed) + overhead
    }
    const split = stride * (boundary < from ? from : boundary > to ? to : boundary)
    const flops = (before[split + 1] ?? 0) - (before[first + 1] ?? 0)
    const bytes = (before[last] ?? 0) - (before[split] ?? 0)
    const longer = flops * perFlop + bytes * perByte + overhead
    if (this.#exposed === 0) return longer
    const hiddenBytes = (before[split] ?? 0) - (before[first] ?? 0)
    const hiddenFlops = (before[last + 1] ?? 0) - (before[split + 1] ?? 0)
    return longer + this.#exposed * (hiddenBytes * perByte + hiddenFlops * perFlop)
  }

  /** Cuts that give each slice the same part of the work on the whole device, and at least one expert. */
  evenCuts(slices: number, sms: number): number[] {
    const experts = this.#experts
    const speed = this.#speed(sms)
    const total = this.#time(0, experts, speed)
    const cuts = [0]
    for (let s = 1; s < slices; s++) {
      let low = (cuts[s - 1] ?? 0) + 1
      let high = experts - (slices - s)
      while (low < high) {
        const middle = (low + high) >> 1
        if (this.#time(0, middle, speed) < (total * s) / slices) low = middle + 1
        else high = middle
      }
      cuts.push(low)
    }
    cuts.push(experts)
    return cuts
  }

  /** Where the coldest begin that so many SMs do within a time; `from` hotter ones and one of the coldest at least. */
  tail(sms: number, limitUs: number, from: number): number {
    const experts = this.#experts
    const speed = this.#speed(sms)
    let low = from
    let high = experts - 1
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#time(middle, experts, speed) <= limitUs) high = middle
      else low = middle + 1
    }
    return low
  }

  /** Sizes for given cuts: each portion of SMs goes to the slice that would end last. */
  sizes(cuts: readonly number[], { sms, granularity, minSms }: Constraints): number[] {
    const slices = cuts.length - 1
    if (slices === 1) return [sms]
    const least = Math.max(1, Math.ceil(minSms / granularity)) * granularity
    const result: number[] = []
    const times: number[] = []
    for (let s = 0; s < slices; s++) {
      result.push(least)
      times.push(this.#time(cuts[s] ?? 0, cuts[s + 1] ?? 0, this.#speed(least)))
    }
    let left = sms - slices * least
    while (left > 0) {
      const portion = left >= granularity ? granularity : left
      let slowest = 0
      for (let s = 1; s < slices; s++) if ((times[s] ?? 0) > (times[slowest] ?? 0)) slowest = s
      const size = (result[slowest] ?? 0) + portion
      result[slowest] = size
      times[slowest] = this.#time(cuts[slowest] ?? 0, cuts[slowest + 1] ?? 0, this.#speed(size))
      left -= portion
    }
    return result
  }

  /** Cuts for given sizes: the earliest ending time at which all experts fit, by bisection; every slice has one. */
  cuts(sms: readonly number[]): number[] {
    const experts = this.#experts
    const slices = sms.length
    const speeds = sms.map((n) => this.#speed(n))
    // `high` is late enough; `low` is when slices that all had the same mix of work would end.
    let low = 0
    let high = 0
    for (const speed of speeds) {
      const all = this.#time(0, experts, speed)
      high = Math.max(high, all)
      low += 1 / all
    }
    low = 1 / low
    const best = new Array<number>(slices + 1).fill(0)
    // Where the last search ended is where this one begins: other sizes, or another load, cut not far from there.
    if (this.#tried.length <= slices) this.#tried = new Int32Array(slices + 1)
    const tried = this.#tried
    // Between two attempts most limits cut at the same places, for experts are whole. So an attempt tells more than it was asked: what it came
    // to ends by `enough`, and any limit from there on gives the same cuts; what failed fails below `short` too.
    let enough = Number.POSITIVE_INFINITY
    let short = 0
    // The limit that `best` is of.
    let bestOf = 0
    const fits = (limit: number): boolean => {
      if (limit >= enough) return true
      if (limit < short) return false
      if (!this.#fill(speeds, limit, tried)) {
        short = this.#missedUs
        return false
      }
      enough = this.#reachedUs
      bestOf = limit
      for (let s = 0; s <= slices; s++) best[s] = tried[s] ?? 0
      return true
    }
    // First aim at the earliest time: the limit at which the last slice just ends, by the secant through the last two attempts. Once that time is
    // known from both sides, the search below has nothing left to try.
    let steep = slices
    let before = 0
    let spareBefore = 0
    for (let i = 0, limit = low; i < mostAims && short < enough && limit > 0; i++) {
      fits(limit)
      const spare = limit - this.#lastUs
      const slope = (spare - spareBefore) / (limit - before)
      if (i > 0 && slope > 1) steep = slope
      before = limit
      spareBefore = spare
      const aim = limit - spare / steep
      limit = Math.max(short, aim < enough * near ? aim : enough * below)
    }
    // Slices with the work that suits them can be sooner than that.
    while (low > 0 && fits(low)) {
      high = low
      low *= 0.9
    }
    // Steps up from the least time in small strides find a close upper bound quickly: most loads can be cut almost evenly.
    for (let stride = 1.02; low * stride < high; stride = 1 + (stride - 1) * 3) {
      if (!fits(low * stride)) continue
      high = low * stride
      break
    }
    for (let i = 0; i < 12 && high - low > 5e-4 * high; i++) {
      const middle = (low + high) / 2
      if (fits(middle)) high = middle
      else low = middle
    }
    // Of a limit below the one that was found: that one may put an expert elsewhere.
    if (bestOf < high && this.#fill(speeds, high, tried)) for (let s = 0; s <= slices; s++) best[s] = tried[s] ?? 0
    best[slices] = experts
    return best
  }

  /**
   * Cuts within a limit: each slice takes as many of the ranking as it can. Searches outwards from the cuts that it is given, which are close as a
   * rule: the result does not depend on them. Leaves when the slowest slice ends, or the least limit at which an attempt that failed could end otherwise.
   */
  #fill(speeds: readonly Speed[], limit: number, cuts: Int32Array): boolean {
    const experts = this.#experts
    const last = speeds.length - 1
    let reached = 0
    let missed = Number.POSITIVE_INFINITY
    let from = 0
    cuts[0] = 0
    for (let s = 0; s <= last; s++) {
      const speed = speeds[s]
      if (speed === undefined) break
      const least = s === last ? experts : from + 1
      // The rest of the slices get at least one each.
      const most = experts - (last - s)
      let low = Math.min(most, Math.max(least, cuts[s + 1] ?? 0))
      let lowUs = this.#time(from, low, speed)
      let high = most + 1
      let stride = 1
      while (lowUs > limit) {
        if (low === least) {
          this.#lastUs = lowUs
          this.#missedUs = Math.min(missed, lowUs)
          return false
        }
        high = low
        missed = Math.min(missed, lowUs)
        low = Math.max(least, low - stride)
        stride *= 2
        lowUs = this.#time(from, low, speed)
      }
      while (high - low > 1) {
        // Upwards by strides as long as nothing is known to be too much.
        const middle = high > most ? Math.min(most, low + stride) : (low + high) >> 1
        const us = this.#time(from, middle, speed)
        if (us <= limit) {
          low = middle
          lowUs = us
          stride *= 2
        } else {
          high = middle
          missed = Math.min(missed, us)
        }
      }
      cuts[s + 1] = low
      from = low
      reached = Math.max(reached, lowUs)
      this.#lastUs = lowUs
    }
    this.#reachedUs = reached
    return true
  }
}
