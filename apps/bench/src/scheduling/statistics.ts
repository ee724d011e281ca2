/** Order statistics of timings, and how sure they are. */
import { median } from '../median.js'

/** The q-quantile, 0 to 1, by linear interpolation between order statistics; NaN when empty. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * q
  const low = Math.floor(at)
  const high = Math.ceil(at)
  const below = sorted[low] ?? Number.NaN
  return below + (at - low) * ((sorted[high] ?? Number.NaN) - below)
}

/**
 * The 95 % interval of the median, by order statistics: between the r-th smallest and the r-th largest value lies the median of what was sampled
 * unless fewer than r samples fell on one side of it, which a fair coin says how probable it is. Of fewer than six values, which cannot be
 * that sure, the whole range; of none, `null`.
 */
export function medianInterval(values: readonly number[]): readonly [low: number, high: number] | null {
  const sorted = [...values].sort((a, b) => a - b)
  const n = sorted.length
  // P(at most r - 1 of n fair coins show heads), term by term in logarithms.
  let logTerm = -n * Math.LN2
  let tail = Math.exp(logTerm)
  let rank = 0
  while (tail <= 0.025 && rank < n / 2) {
    rank++
    logTerm += Math.log((n - rank + 1) / rank)
    tail += Math.exp(logTerm)
  }
  const from = Math.max(rank, 1) - 1
  const [low, high] = [sorted[from], sorted[n - 1 - from]]
  return low === undefined || high === undefined ? null : [low, high]
}

/** A ratio of medians with its bootstrap interval. */
export interface RatioInterval {
  readonly ratio: number
  readonly low: number
  readonly high: number
  readonly pairs: number
}

/**
 * median(a) / median(b) of interleaved pairs, with the 95 % percentile bootstrap interval over pairs (seeded, so that a file can be checked).
 */
export function ratioOfMedians(a: readonly number[], b: readonly number[], resamples = 1000, seed = 1): RatioInterval {
  if (a.length !== b.length || a.length === 0) {
    throw new RangeError(`pairs: expected two samples of one length, got ${a.length} and ${b.length}`)
  }
  let state = seed >>> 0
  const below = (n: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 4294967296) * n)
  }
  const ratios: number[] = []
  for (let r = 0; r < resamples; r++) {
    const x: number[] = []
    const y: number[] = []
    for (let i = 0; i < a.length; i++) {
      const pick = below(a.length)
      x.push(a[pick] ?? 0)
      y.push(b[pick] ?? 0)
    }
    ratios.push(median(x) / median(y))
  }
  return {
    ratio: median(a) / median(b),
    low: quantile(ratios, 0.025),
    high: quantile(ratios, 0.975),
    pairs: a.length,
  }
}
