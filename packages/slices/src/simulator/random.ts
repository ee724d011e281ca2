/** Random numbers that a seed decides: mulberry32, and the distributions that traces need. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let z = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32
  }

  /** In [from, to). */
  between(from: number, to: number): number {
    return from + (to - from) * this.next()
  }

  /** An integer in [0, below). */
  integer(below: number): number {
    return Math.floor(this.next() * below)
  }

  /** Mean 0, standard deviation 1 (Box and Muller). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next())
  }

  /** Exponential with this mean. */
  exponential(mean: number): number {
    return -mean * Math.log(1 - this.next())
  }

  /** Poisson; above a mean of 64 its normal approximation, rounded. */
  poisson(mean: number): number {
    if (mean > 64) return Math.max(0, Math.round(mean + Math.sqrt(mean) * this.normal()))
    const limit = Math.exp(-mean)
    let count = 0
    for (let product = this.next(); product > limit; product *= this.next()) count++
    return count
  }
}
