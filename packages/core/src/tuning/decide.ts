/**
 * From measured times to choices. What the heuristic says stays unless something else is faster by more than the measurement's noise: a choice
 * that flips from run to run is worth less than one that is known.
 */

/** Samples of one way in microseconds, by an even load and by a skewed one. */
export interface Timed {
  readonly name: string
  readonly heuristic: boolean
  readonly even: readonly number[]
  readonly skewed: readonly number[]
}

/** A variant of a linear layer, timed alone. */
export interface Measured extends Timed {
  /** Of its sums; '' where it changes with the rows. */
  readonly order: string
  /** What runs in its place is faster than it: kernels for the step as a whole, with the same bits. */
  readonly fusedStep: boolean
}

export interface Decision {
  readonly chosen: string
  readonly heuristic: string
  /** The heuristic's time over the chosen one's: 1 where it is the heuristic's own. */
  readonly speedup: number
  /** The fastest one's time over the heuristic's must be below 1 minus this to be chosen. */
  readonly noise: number
}

/** Two ways that are closer than this are one as good as the other, however quiet the measurement. */
const leastGain = 0.01

export function medianOf(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b)
  const at = sorted.length >> 1
  const [low = Number.NaN, high = Number.NaN] =
    sorted.length % 2 === 1 ? [sorted[at], sorted[at]] : [sorted[at - 1], sorted[at]]
  return (low + high) / 2
}

/** Relative standard error of the median, from the median absolute deviation (normal noise: σ = 1.4826·MAD, and π/2 for the median). */
export function errorOf(samples: readonly number[]): number {
  const median = medianOf(samples)
  const mad = medianOf(samples.map((sample) => Math.abs(sample - median)))
  return (Math.sqrt(Math.PI / 2) * 1.4826 * mad) / median / Math.sqrt(samples.length)
}

/** Geometric mean of the two loads' medians; infinite without samples. */
export const scoreOf = ({ even, skewed }: Pick<Timed, 'even' | 'skewed'>): number =>
  even.length === 0 || skewed.length === 0 ? Number.POSITIVE_INFINITY : Math.sqrt(medianOf(even) * medianOf(skewed))

/** From fast to slow. */
export const ranked = <T extends Timed>(all: readonly T[]): T[] => [...all].sort((a, b) => scoreOf(a) - scoreOf(b))

/** @throws RangeError where the heuristic's is not among them */
export function decide(all: readonly Timed[]): Decision {
  const [best] = ranked(all)
  const own = all.find(({ heuristic }) => heuristic)
  if (best === undefined || own === undefined) throw new RangeError("measured: expected the heuristic's among them")
  // Two standard errors of the difference, the larger of the two loads.
  const noise = Math.max(
    leastGain,
    2 * Math.hypot(errorOf(best.even), errorOf(own.even)),
    2 * Math.hypot(errorOf(best.skewed), errorOf(own.skewed)),
  )
  const faster = scoreOf(best) < scoreOf(own) * (1 - noise)
  // Faster on the whole is not enough where one of the loads would pay for it.
  const neither =
    medianOf(best.even) <= medianOf(own.even) * (1 + noise) &&
    medianOf(best.skewed) <= medianOf(own.skewed) * (1 + noise)
  const chosen = faster && neither ? best : own
  return { chosen: chosen.name, heuristic: own.name, speedup: scoreOf(own) / scoreOf(chosen), noise }
}

/**
 * What keeping to one order of sums costs in one bucket: the fastest variant of that order over what is chosen without it, both alone. It is 1
 * where what is chosen is of that order, and no less where that was not the fastest alone: it is the fastest in a step.
 */
export interface OrderPrice {
  readonly order: string
  /** By bucket, in the order given; 1 is free. */
  readonly prices: readonly number[]
  /** Their geometric mean. */
  readonly mean: number
}

/**
 * The orders of sums by their mean price over the buckets, the cheapest first. Only orders that have a variant in every bucket; `orders` are
 * those that have one at any number of rows.
 */
export function orderPrices(
  buckets: readonly { readonly measured: readonly Measured[]; readonly chosen: string }[],
  orders: ReadonlySet<string>,
): readonly OrderPrice[] {
  const all: OrderPrice[] = []
  for (const order of orders) {
    const prices = buckets.map(({ measured, chosen }) => {
      const own = measured.find(({ name }) => name === chosen)
      if (own === undefined) return Number.NaN
      if (own.order === order) return 1
      return Math.max(1, Math.min(...measured.filter((m) => m.order === order).map(scoreOf)) / scoreOf(own))
    })
    if (prices.length === 0 || !prices.every(Number.isFinite)) continue
    const mean = Math.exp(prices.reduce((sum, price) => sum + Math.log(price), 0) / prices.length)
    all.push({ order, prices, mean })
  }
  return all.sort((a, b) => a.mean - b.mean)
}
