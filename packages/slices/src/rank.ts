/**
 * Experts by descending load. Once a decision's largest single piece of work, hence not the sort that the language has: loads as floats are spread
 * nearly evenly by their bits (an even spacing of logarithms, about), so that one pass into buckets leaves little to insert. Where it leaves much, a
 * radix sort, which is linear whatever the loads are.
 */

/** Loads are told apart to 1 part in 2^30 of the largest; closer ones are equal. */
const levels = 2 ** 30
/** Below this many experts, insertion is cheaper than counting digits. */
const few = 24
const digits = 256
/** Buckets by bits; loads that are nothing beside the largest have one more. */
const buckets = 256
/** Mean of the others in an expert's bucket from which on counting digits is cheaper than insertion. */
const crowded = 16

/** Ranks experts; the arrays that it needs for that are kept from one call to the next. */
export class Ranker {
  /** Experts, the one with most load first (equal loads: the lower number). As long as the most experts that were ranked. */
  order = new Int32Array(0)
  #orderNext = new Int32Array(0)
  #keys = new Int32Array(0)
  #keysNext = new Int32Array(0)
  #floats = new Float32Array(0)
  #bits = new Int32Array(0)
  readonly #counts = new Int32Array(4 * digits)
  readonly #starts = new Int32Array(buckets + 1)

  /** The first `experts` of a load. */
  rank(load: Float64Array, experts: number): void {
    if (this.order.length < experts) {
      this.order = new Int32Array(experts)
      this.#orderNext = new Int32Array(experts)
      this.#keys = new Int32Array(experts)
      this.#keysNext = new Int32Array(experts)
      this.#floats = new Float32Array(experts)
      this.#bits = new Int32Array(this.#floats.buffer)
    }
    let largest = 0
    for (let e = 0; e < experts; e++) {
      const a = load[e] ?? 0
      if (a > largest) largest = a
    }
    const { order } = this
    const keys = this.#keys
    const scale = levels / largest
    let odd = 0
    for (let e = 0; e < experts; e++) {
      const part = (largest - (load[e] ?? 0)) * scale
      if (!(part >= 0 && part <= levels)) odd++
      keys[e] = part | 0
      order[e] = e
    }
    if (odd > 0) this.#compare(load, experts, largest, scale)
    else if (experts <= few) this.#insert(this.#keys, order, experts)
    else if (!this.#spread(experts)) this.#radix(experts)
  }

  /** Into buckets, then insertion; `false`, and nothing has happened, where too many are in one bucket. */
  #spread(experts: number): boolean {
    const [keys, order, floats, bits, starts] = [this.#keys, this.order, this.#floats, this.#bits, this.#starts]
    let least = 0x7fffffff
    let most = 0
    for (let e = 0; e < experts; e++) {
      floats[e] = levels - (keys[e] ?? 0)
      const b = bits[e] ?? 0
      if (b > most) most = b
      if (b > 0 && b < least) least = b
    }
    const scale = buckets / (most - least + 1)
    starts.fill(0)
    for (let e = 0; e < experts; e++) {
      const b = bits[e] ?? 0
      const bucket = b === 0 ? buckets : ((most - b) * scale) | 0
      bits[e] = bucket
      starts[bucket] = (starts[bucket] ?? 0) + 1
    }
    let before = 0
    let pairs = 0
    for (let bucket = 0; bucket < buckets; bucket++) {
      const count = starts[bucket] ?? 0
      starts[bucket] = before
      before += count
      pairs += count * count
    }
    starts[buckets] = before
    if (pairs > (crowded + 1) * experts) return false
    const [keysNext, orderNext] = [this.#keysNext, this.#orderNext]
    for (let e = 0; e < experts; e++) {
      const bucket = bits[e] ?? 0
      const at = starts[bucket] ?? 0
      starts[bucket] = at + 1
      keysNext[at] = keys[e] ?? 0
      orderNext[at] = e
    }
    this.order = orderNext
    this.#orderNext = order
    this.#insert(keysNext, orderNext, experts)
    return true
  }

  #insert(keys: Int32Array, order: Int32Array, experts: number): void {
    for (let i = 1; i < experts; i++) {
      const key = keys[i] ?? 0
      const expert = order[i] ?? 0
      let at = i
      for (; at > 0 && (keys[at - 1] ?? 0) > key; at--) {
        keys[at] = keys[at - 1] ?? 0
        order[at] = order[at - 1] ?? 0
      }
      keys[at] = key
      order[at] = expert
    }
  }

  /** Four stable passes of 8 bits: an even number, so that the result is where it began. */
  #radix(experts: number): void {
    const counts = this.#counts
    let [keys, keysNext, order, orderNext] = [this.#keys, this.#keysNext, this.order, this.#orderNext]
    counts.fill(0)
    for (let i = 0; i < experts; i++) {
      const key = keys[i] ?? 0
      const [a, b, c, d] = [key & 255, 256 + ((key >> 8) & 255), 512 + ((key >> 16) & 255), 768 + (key >> 24)]
      counts[a] = (counts[a] ?? 0) + 1
      counts[b] = (counts[b] ?? 0) + 1
      counts[c] = (counts[c] ?? 0) + 1
      counts[d] = (counts[d] ?? 0) + 1
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
        const key = keys[i] ?? 0
        const digit = first + ((key >> shift) & 255)
        const at = counts[digit] ?? 0
        counts[digit] = at + 1
        keysNext[at] = key
        orderNext[at] = order[i] ?? 0
      }
      ;[keys, keysNext, order, orderNext] = [keysNext, keys, orderNext, order]
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
