/**
 * Steps predicted by the cost model. A decision asks for several layouts of one load, so what each expert moves and computes is worked out
 * once, into arrays that are kept from one load to the next; each layout is then one pass over them. The sums go by the experts'
 * numbers, whoever asks, so that a prediction has the same bits everywhere.
 */
import { type CostModel, expertFlops, outsideUs, type Placement, type StepPrediction } from './cost.js'
import { interpolate } from './device.js'
import { join } from './roofline.js'
import { type TileWorth, worthOf } from './tile-cost.js'

/** What so many SMs do. */
export interface Speed {
  /** Bytes a second. */
  bandwidth: number
  /** Microseconds of a byte. */
  perByte: number
  /** Microseconds of an operation. */
  perFlop: number
  /** First of a ranking of experts that is bound by memory; -1 where nobody has looked. */
  boundary: number
  /** The load that it was worked out for. */
  since: number
}

function speedOf(cost: CostModel | null, sms: number): Speed {
  const bandwidth = cost === null ? Number.POSITIVE_INFINITY : interpolate(cost.bandwidth, sms)
  // By tiles an expert's operations are what it is worth on an SM.
  const byWork = cost === null || cost.tiles !== undefined
  const perByte = byWork ? 0 : 1e6 / bandwidth
  const perFlop = byWork ? 1 / sms : 1e6 / interpolate(cost.rate, sms)
  return { bandwidth, perByte, perFlop, boundary: -1, since: 0 }
}

/** Sizes that are remembered are below this; devices have far fewer SMs. */
const mostSms = 4096

/** One load after the other, as the cost model sees it. */
export class Workload {
  experts = 0
  cost: CostModel | null = null
  /** By expert, as the four below; as long as the most experts that there were. */
  load = new Float64Array(0)
  bytes = new Float64Array(0)
  flops = new Float64Array(0)
  overheadUs = new Float64Array(0)
  /** The largest load, and the least that is more than none: 0 and infinity where nobody has any. */
  largest = 0
  least = Number.POSITIVE_INFINITY
  /** Of all experts. */
  assignments = 0
  #bytesOfAll = 0
  /** Experts with work; of an expected count below 1, the probability. */
  #present = 0
  #fills = 0
  /** By SMs, of one cost model. */
  #speeds: (Speed | undefined)[] = []
  // By slice.
  #sliceUs = new Float64Array(0)
  #memoryUs = new Float64Array(0)
  #arithmeticUs = new Float64Array(0)
  #perByte = new Float64Array(0)
  #perFlop = new Float64Array(0)

  /**
   * Takes a load; the one before is gone.
   * @param experts - how many; those that the load does not have have none
   * @param sms - that do it, all slices together
   * @param slices - into how many it may be divided: kernels may have other tiles for several
   */
  fill(load: ArrayLike<number>, experts: number, cost: CostModel | null, sms: number, slices: number): void {
    this.#fills++
    this.experts = experts
    if (this.cost !== cost) {
      this.cost = cost
      this.#speeds = []
    }
    if (this.load.length < experts) {
      this.load = new Float64Array(experts)
      this.bytes = new Float64Array(experts)
      this.flops = new Float64Array(experts)
      this.overheadUs = new Float64Array(experts)
    }
    const own = this.load
    let largest = 0
    let least = Number.POSITIVE_INFINITY
    for (let e = 0; e < experts; e++) {
      const a = load[e] ?? 0
      own[e] = a
      if (a > largest) largest = a
      if (a < least && a > 0) least = a
    }
    this.largest = largest
    this.least = least
    if (cost === null) return
    if (cost.tiles) {
      this.#fillByTiles(worthOf(cost.tiles, slices > 1), sms)
      return
    }
    const { bytes, flops, overheadUs: overhead } = this
    const { weightBytes, assignmentBytes, assignmentFlop, overheadUs, rowTile = 1, extraRows = 0 } = cost
    const plainRows = rowTile === 1 && extraRows === 0
    let bytesOfAll = 0
    let assignments = 0
    let presentOfAll = 0
    for (let e = 0; e < experts; e++) {
      const a = own[e] ?? 0
      if (a <= 0) {
        bytes[e] = 0
        flops[e] = 0
        overhead[e] = 0
        continue
      }
      const present = Math.min(1, a)
      const moved = weightBytes * present + assignmentBytes * a
      bytes[e] = moved
      flops[e] = plainRows ? assignmentFlop * a : expertFlops(cost, a)
      overhead[e] = overheadUs * present
      bytesOfAll += moved
      assignments += a
      presentOfAll += present
    }
    this.assignments = assignments
    this.#present = presentOfAll
    this.#bytesOfAll = bytesOfAll
  }

  #fillByTiles(worth: TileWorth, sms: number): void {
    const { load, bytes, flops, overheadUs, experts } = this
    worth.fill(load, experts, flops, sms)
    bytes.fill(0, 0, experts)
    overheadUs.fill(0, 0, experts)
    let assignments = 0
    for (let e = 0; e < experts; e++) assignments += load[e] ?? 0
    this.assignments = assignments
    this.#present = 0
    this.#bytesOfAll = worth.bytes
  }

  /** What `sms` SMs do; the same object for the same number as long as the load is the same. */
  speed(sms: number): Speed {
    let speed = this.#speeds[sms]
    if (speed === undefined) {
      speed = speedOf(this.cost, sms)
      if (sms < mostSms) this.#speeds[sms] = speed
    }
    if (speed.since !== this.#fills) {
      speed.boundary = -1
      speed.since = this.#fills
    }
    return speed
  }

  /** The least that a step in so many slices of `sms` SMs together can take, to the bit: what the memory needs, and what is outside of the slices. */
  leastUs(sms: number, slices: number): number {
    if (this.cost === null) return 0
    return this.#memoryOfAllUs(sms) + outsideUs(this.cost, slices, this.assignments)
  }

  #memoryOfAllUs(sms: number): number {
    return (this.#bytesOfAll * 1e6) / (this.cost?.tiles?.memoryBytesPerSecond ?? this.speed(sms).bandwidth)
  }

  /** The step when experts are in the slices that `sliceOf` says; it may be longer than there are experts. */
  predict(sms: readonly number[], sliceOf: Int32Array): StepPrediction {
    const { cost } = this
    const slices = sms.length
    if (this.#sliceUs.length < slices) {
      this.#sliceUs = new Float64Array(slices)
      this.#memoryUs = new Float64Array(slices)
      this.#arithmeticUs = new Float64Array(slices)
      this.#perByte = new Float64Array(slices)
      this.#perFlop = new Float64Array(slices)
    }
    let total = 0
    for (let s = 0; s < slices; s++) {
      const n = sms[s] ?? 0
      const { perByte, perFlop } = this.speed(n)
      this.#perByte[s] = perByte
      this.#perFlop[s] = perFlop
      this.#sliceUs[s] = 0
      this.#memoryUs[s] = 0
      this.#arithmeticUs[s] = 0
      total += n
    }
    if (cost?.contention && slices > 1) this.#contend(cost.contention, sms, total)
    if (cost === null) this.#assign(sms, sliceOf)
    else if (cost.overlap === 'slice') this.#together(sliceOf, cost.exposed ?? 0, slices)
    else this.#inTurn(sliceOf, cost.exposed ?? 0)
    if (cost?.walkUs && slices > 1) {
      const walk = cost.walkUs * this.#present
      for (let s = 0; s < slices; s++) {
        const us = this.#sliceUs[s] ?? 0
        if (us > 0) this.#sliceUs[s] = us + walk / (sms[s] ?? 1)
      }
    }
    const sliceUs: number[] = []
    let longest = 0
    for (let s = 0; s < slices; s++) {
      const us = this.#sliceUs[s] ?? 0
      sliceUs.push(us)
      if (us > longest) longest = us
    }
    if (cost === null) return { stepUs: longest, sliceUs }
    const inside = Math.max(longest, this.#memoryOfAllUs(total))
    return { stepUs: inside + outsideUs(cost, slices, this.assignments), sliceUs }
  }

  /** Slices that together ask for more than the memory has read more slowly. */
  #contend(contention: number, sms: readonly number[], total: number): void {
    let asked = 0
    for (const n of sms) asked += this.speed(n).bandwidth
    const slower = 1 + contention * Math.max(0, asked / this.speed(total).bandwidth - 1)
    for (let s = 0; s < sms.length; s++) this.#perByte[s] = (this.#perByte[s] ?? 0) * slower
  }

  #assign(sms: readonly number[], sliceOf: Int32Array): void {
    const { load, experts } = this
    const sliceUs = this.#sliceUs
    for (let e = 0; e < experts; e++) {
      const s = sliceOf[e] ?? 0
      sliceUs[s] = (sliceUs[s] ?? 0) + (load[e] ?? 0) / (sms[s] ?? 1)
    }
  }

  /** Experts one after the other: their times add up. */
  #inTurn(sliceOf: Int32Array, exposed: number): void {
    const { bytes, flops, overheadUs, experts } = this
    const sliceUs = this.#sliceUs
    const perByte = this.#perByte
    const perFlop = this.#perFlop
    for (let e = 0; e < experts; e++) {
      const s = sliceOf[e] ?? 0
      const memory = (bytes[e] ?? 0) * (perByte[s] ?? 0)
      const arithmetic = (flops[e] ?? 0) * (perFlop[s] ?? 0)
      sliceUs[s] = (sliceUs[s] ?? 0) + join(memory, arithmetic, exposed) + (overheadUs[e] ?? 0)
    }
  }

  /** Experts beside each other: bytes and operations of a slice add up, and are joined once. */
  #together(sliceOf: Int32Array, exposed: number, slices: number): void {
    const { bytes, flops, overheadUs, experts } = this
    const sliceUs = this.#sliceUs
    const perByte = this.#perByte
    const perFlop = this.#perFlop
    const memoryUs = this.#memoryUs
    const arithmeticUs = this.#arithmeticUs
    for (let e = 0; e < experts; e++) {
      const s = sliceOf[e] ?? 0
      memoryUs[s] = (memoryUs[s] ?? 0) + (bytes[e] ?? 0) * (perByte[s] ?? 0)
      arithmeticUs[s] = (arithmeticUs[s] ?? 0) + (flops[e] ?? 0) * (perFlop[s] ?? 0)
      sliceUs[s] = (sliceUs[s] ?? 0) + (overheadUs[e] ?? 0)
    }
    for (let s = 0; s < slices; s++) {
      sliceUs[s] = (sliceUs[s] ?? 0) + join(memoryUs[s] ?? 0, arithmeticUs[s] ?? 0, exposed)
    }
  }
}

const sum = (values: readonly number[]) => values.reduce((total, x) => total + x, 0)

// Calls do not nest: nothing in between is anybody else's code.
const scratch = new Workload()
let scratchSliceOf = new Int32Array(0)

/**
 * Microseconds of a step. Without a cost model the unit is one assignment on one SM, and only ratios mean something.
 * @param load - assignments by expert
 */
export function predictStep(cost: CostModel | null, load: ArrayLike<number>, placement: Placement): StepPrediction {
  const { sms, sliceOf } = placement
  scratch.fill(load, sliceOf.length, cost, sum(sms), sms.length)
  if (scratchSliceOf.length < sliceOf.length) scratchSliceOf = new Int32Array(sliceOf.length)
  for (let e = 0; e < sliceOf.length; e++) scratchSliceOf[e] = sliceOf[e] ?? 0
  return scratch.predict(sms, scratchSliceOf)
}
