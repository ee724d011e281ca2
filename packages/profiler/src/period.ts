/**
 * Finds the period of a load by autocorrelation. The series is what the forecaster keeps: one vector of counts for each bin of
 * steps. All experts vote: the autocovariance at a lag is the sum over experts, so that one that hardly moves hardly counts.
 *
 * To be cheap at 256 experts, the vectors are first folded onto a few sums with signs ±1 that depend on the expert's number
 * alone; such sums keep the autocovariance in expectation (the cross terms cancel), at a fixed cost for any number of experts.
 */

const folds = 12

/** ±1 by expert and fold: a bit of a multiplicative hash, the same in every process. */
function sign(expert: number, fold: number): number {
  let h = Math.imul(expert + 1, 0x9e3779b1) ^ Math.imul(fold + 1, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d)
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39)
  return ((h ^ (h >>> 15)) & 1) === 0 ? 1 : -1
}

/** Folds vectors of a number of experts; with few experts it is the vector itself. */
export class Folding {
  readonly #numExperts: number
  /** By fold, then by expert; `null` when there is nothing to fold. */
  readonly #signs: Int8Array | null

  constructor(numExperts: number) {
    this.#numExperts = numExperts
    this.#signs = numExperts <= folds ? null : new Int8Array(folds * numExperts)
    this.#signs?.forEach((_, i, signs) => {
      signs[i] = sign(i % numExperts, Math.floor(i / numExperts))
    })
  }

  fold(counts: Float64Array): Float64Array {
    const signs = this.#signs
    if (signs === null) return counts
    const result = new Float64Array(folds)
    for (let f = 0, i = 0; f < folds; f++) {
      let total = 0
      for (let e = 0; e < this.#numExperts; e++, i++) total += (signs[i] ?? 0) * (counts[e] ?? 0)
      result[f] = total
    }
    return result
  }
}

/** Each component of the vectors as a series without its mean. */
function components(bins: readonly Float64Array[]): Float64Array[] {
  return Array.from({ length: bins[0]?.length ?? 0 }, (_, f) => {
    const series = Float64Array.from(bins, (bin) => bin[f] ?? 0)
    const mean = series.reduce((total, x) => total + x, 0) / series.length
    return series.map((x) => x - mean)
  })
}

/**
 * The period of the series in bins, with a fraction (by the parabola through the peak and its neighbours).
 * @param bins - folded, oldest first
 * @param least - smallest normalised autocorrelation, in (0, 1), that counts as a period
 * @returns from 4 bins to two thirds of the series; `null` when nothing repeats
 */
export function findPeriod(bins: readonly Float64Array[], least = 0.3): number | null {
  const length = bins.length
  const longest = Math.floor((length * 2) / 3)
  if (longest < 4) return null
  const series = components(bins)
  const covariance = (lag: number) => {
    let total = 0
    for (const one of series) for (let t = lag; t < length; t++) total += (one[t] ?? 0) * (one[t - lag] ?? 0)
    return total / (length - lag)
  }
  const variance = covariance(0)
  // Rounding alone is no signal.
  const scale = Math.max(...bins.map((bin) => bin.reduce((total, x) => total + x * x, 0)))
  if (!(variance > 1e-20 * scale)) return null
  const r = Float64Array.from({ length: longest + 2 }, (_, lag) => (lag < length ? covariance(lag) / variance : 0))
  const at = (lag: number) => r[lag] ?? 0
  // A slowly moving load is like itself at small lags: a peak counts only once the correlation has gone below zero.
  let lag = 1
  while (lag <= longest && at(lag) > 0) lag++
  const peaks: number[] = []
  for (lag = Math.max(lag, 4); lag <= longest; lag++) {
    if (at(lag) >= least && at(lag) >= at(lag - 1) && at(lag) >= at(lag + 1)) peaks.push(lag)
  }
  const highest = Math.max(...peaks.map(at))
  // Of the period and its multiples, the first that is nearly as high.
  const peak = peaks.find((candidate) => at(candidate) >= 0.8 * highest)
  if (peak === undefined) return null
  const [before, top, after] = [at(peak - 1), at(peak), at(peak + 1)]
  const curvature = before - 2 * top + after
  const shift = curvature < 0 ? (before - after) / (2 * curvature) : 0
  return peak + Math.max(-0.5, Math.min(0.5, shift))
}
