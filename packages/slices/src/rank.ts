/**
 * Experts by descending load. Once a decision's largest single piece of work, hence not the sort that the language has: loads as floats are spread
 * nearly evenly by their bits (an even spacing of logarithms, about), so that one pass into buckets leaves little to insert. Where it leaves much, a
 * radix sort, which is linear whatever the loads are.
 */

/** Loads are told apart to 1 part in 2^30 of the largest; closer ones are equal. */
const levels = 2 ** 30
/** Below this many experts, insertion is cheaper than counting. */
const few = 24
const digits = 256
/** Buckets by bits, as a power of 2: about two for an expert, so that most are alone. Loads that are nothing beside the largest have one more. */
const bucketBits = 9
/** Mean of the others in an expert's bucket from which on counting digits is cheaper than insertion. */
const crowded = 16

/** A load: of the first `experts` of an array. */
export interface Ranked {
  readonly load: Float64Array
  readonly experts: number
  /** The largest, and the least that is more than none: 0 and infinity where nobody has any. */
  readonly largest: number
  readonly least: number
}

/** Ranks experts; the arrays that it needs for that are kept from one call to the next. */
export class Ranker {
  /** Experts, the one with most load first (equal loads: the lower number). As long as the most experts that were ranked. */
  order = new Int32Array(0)
  #orderNext = new Int32Array(0)
  /** By expert: the less, the more load. */
  #keys = new Int32Array(0)
  #buckets = new Int32Array(0)
  readonly #counts = new Int32Array(4 * digits)
  readonly #starts = new Int32Array(2 ** bucketBits + 1)

  /** Ranks the experts of a load. */
  rank({ load, experts, largest, least }: Ranked): void {
    if (this.order.length < experts) {
      this.order = new Int32Array(experts)
      this.#orderNext = new Int32Array(experts)
      this.#keys = new Int32Array(experts)
      this.#buckets = new Int32Array(experts)
    }
    const keys = this.#keys
    const buckets = this.#buckets
    const starts = this.#starts
    const scale = levels / largest
    // Octaves from the largest load to the least that is anything beside it; each has so many buckets.
    const octaves = Math.clz32(least * scale)
    const fine = Math.max(0, Math.clz32(octaves) + bucketBits - 32)
    const last = octaves << fine
    starts.fill(0)
    let odd = 0
    for (let e = 0; e < experts; e++) {
      const part = (largest - (load[e] ?? 0)) * scale
      if (!(part >= 0 && part <= levels)) {
        odd++
        continue
      }
      const key = part | 0
      keys[e] = key
      // A float of the load without its rounding: how many zeros are before it, and the bits behind its first.
      const zeros = Math.clz32(levels - key)
      const above = (zeros << fine) - (((levels - key) << zeros) >>> (31 - fine))
      const bucket = Math.min(above, last)
      buckets[e] = bucket
      starts[bucket] = (starts[bucket] ?? 0) + 1
    }
    if (odd > 0) this.#compare(load, experts, largest, scale)
    else if (experts <= few) this.#inTurn(experts)
    else if (!this.#spread(experts, last)) this.#radix(experts)
  }

  #inTurn(experts: number): void {
    const { order } = this
    for (let e = 0; e < experts; e++) order[e] = e
    this.#insert(experts)
  }

  /** Into buckets, then insertion; `false` where too many are in one bucket. */
  #spread(experts: number, last: number): boolean {
    const { order } = this
    const buckets = this.#buckets
    const starts = this.#starts
    let before = 0
    let pairs = 0
    for (let bucket = 0; bucket < last; bucket++) {
      const count = starts[bucket] ?? 0
      starts[bucket] = before
      before += count
      pairs += count * count
    }
    starts[last] = before
    if (pairs > (crowded + 1) * experts) return false
    for (let e = 0; e < experts; e++) {
      const bucket = buckets[e] ?? 0
      const at = starts[bucket] ?? 0
      starts[bucket] = at + 1
      order[at] = e
    }
    this.#insert(experts)
    return true
  }

  #insert(experts: number): void {
    const keys = this.#keys
    const { order } = this
    let before = keys[order[0] ?? 0] ?? 0
    for (let i = 1; i < experts; i++) {
      const expert = order[i] ?? 0
      const key = keys[expert] ?? 0
      if (key >= before) {
        before = key
        continue
      }
      let at = i
      for (; at > 0; at--) {
        const other = order[at - 1] ?? 0
        if ((keys[other] ?? 0) <= key) break
        order[at] = other
      }
      order[at] = expert
    }
  }

  /** Four stable passes of 8 bits: an even number, so that the result is where it began. */
  #radix(experts: number): void {
    const counts = this.#counts
    const keys = this.#keys
    let { order } = this
    let next = this.#orderNext
    counts.fill(0)
    for (let e = 0; e < experts; e++) {
      order[e] = e
      const key = keys[e] ?? 0
      for (let pass = 0; pass < 4; pass++) {
        const digit = pass * digits + ((key >> (pass * 8)) & 255)
        counts[digit] = (counts[digit] ?? 0) + 1
      }
    }
    for (let pass = 0; pass < 4; pass++) {
      const first = pass * digits
      const shift = pass * 8
      let before = 0
      for (let digit = first; digit < first + digits; digit++) {
        const count = counts[digit] ?? 0
        counts[digit] = before
        before += count
      }
      for (let i = 0; i < experts; i++) {
        const expert = order[i] ?? 0
        const digit = first + (((keys[expert] ?? 0) >> shift) & 255)
        const at = counts[digit] ?? 0
        counts[digit] = at + 1
        next[at] = expert
      }
      const done = order
      order = next
      next = done
    }
  }

  /** Loads that do not fit into keys of 31 bits: negative, infinite, none at all. Number and key are packed into one double. */
  #compare(load: Float64Array, experts: number, largest: number, scale: number): void {
    const keys = new Float64Array(experts)
    for (let e = 0; e < experts; e++) keys[e] = Math.floor((largest - (load[e] ?? 0)) * scale) * experts + e
    keys.sort()
    for (let i = 0; i < experts; i++) this.order[i] = (keys[i] ?? 0) % experts
  }
}
