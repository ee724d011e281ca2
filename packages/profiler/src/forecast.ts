/**
 * Forecasts of the load. Four simple methods run side by side; each time a horizon has passed, what each of them had said is
 * held against what came (a rolling backtest), and the one with the least error speaks next. None is trusted: a method that
 * does not beat the last window by a margin is not used, so that a steady load is forecast by its mean.
 *
 *     last      mean of the last `windowSteps` steps
 *     ewma      exponential average with the half-life `halfLifeSteps`
 *     trend     least-squares line through the last half window, read at the middle of the horizon; not below 0
 *     periodic  mean of what came one, two and three periods before (as many as are known); the period by autocorrelation
 *
 * Time is cut into bins of `horizonSteps` steps: history is one mean vector a bin, so that 1024 steps of 256 experts take
 * 256 KiB, and a forecast costs as much as a few bins.
 */
import type { Forecast, ForecastMethod } from './model.js'
import { Folding, findPeriod } from './period.js'

/** By name, in order of preference among equals. */
export const forecastMethods: readonly ForecastMethod[] = ['last', 'ewma', 'trend', 'periodic']

export interface ForecasterOptions {
  readonly numExperts: number
  readonly windowSteps: number
  readonly halfLifeSteps: number
  readonly horizonSteps: number
  readonly historySteps: number
}

/** The part of a profiler's state that is the forecaster's. */
export interface ForecasterState {
  /** Mean counts per step of each past bin, oldest first. */
  readonly bins: readonly (readonly number[])[]
  /** Counts of the unfinished bin, and its steps. */
  readonly partial: readonly number[]
  readonly partialSteps: number
  readonly average: readonly number[]
  readonly steps: number
  readonly periodBins: number | null
  readonly binsSinceDetection: number
  readonly chosen: ForecastMethod
  /** What each method said of the unfinished bin; `null` where it could not say. */
  readonly pending: Readonly<Record<ForecastMethod, readonly number[] | null>>
  /** Decayed sums of relative errors: of the method, of the last window in the same backtests, and how many they were. */
  readonly errors: Readonly<Record<ForecastMethod, readonly [own: number, last: number, backtests: number]>>
}

/** How much of a backtest's weight is left one backtest later. */
const memory = 0.95
/** A method is trusted after this many backtests. */
const leastBacktests = 4
/** How much better than the one in use a method's error has to be. */
const margin = 0.03
/** Bins between searches for a period. */
const detectEvery = 4

export class Forecaster {
  readonly #options: ForecasterOptions
  readonly #maxBins: number
  readonly #folding: Folding
  #bins: Float64Array[] = []
  /** The same, folded for the search of a period. */
  #folded: Float64Array[] = []
  #partial: Float64Array
  #partialSteps = 0
  #average: Float64Array
  #steps = 0
  #periodBins: number | null = null
  #binsSinceDetection = 0
  #chosen: ForecastMethod = 'last'
  #pending: Record<ForecastMethod, Float64Array | null> = { last: null, ewma: null, trend: null, periodic: null }
  #errors: Record<ForecastMethod, [number, number, number]> = noErrors()

  constructor(options: ForecasterOptions) {
    this.#options = options
    this.#folding = new Folding(options.numExperts)
    this.#maxBins = Math.max(4, Math.ceil(options.historySteps / options.horizonSteps))
    this.#partial = new Float64Array(options.numExperts)
    this.#average = new Float64Array(options.numExperts)
  }

  /** One step; `lastWindow` gives the sums and the steps of the rolling window that ends with it. */
  push(counts: Float64Array, windowSums: Float64Array, windowSteps: number): void {
    const { halfLifeSteps, horizonSteps, numExperts } = this.#options
    const decay = 2 ** (-1 / halfLifeSteps)
    for (let e = 0; e < numExperts; e++) {
      const count = counts[e] ?? 0
      this.#partial[e] = (this.#partial[e] ?? 0) + count
      this.#average[e] = (this.#average[e] ?? 0) * decay + (1 - decay) * count
    }
    this.#steps++
    if (++this.#partialSteps < horizonSteps) return
    const bin = this.#partial.map((sum) => sum / horizonSteps)
    this.#backtest(bin)
    this.#bins.push(bin)
    this.#folded.push(this.#folding.fold(bin))
    if (this.#bins.length > this.#maxBins) {
      this.#bins.shift()
      this.#folded.shift()
    }
    this.#partial = new Float64Array(numExperts)
    this.#partialSteps = 0
    if (++this.#binsSinceDetection >= detectEvery) {
      this.#binsSinceDetection = 0
      this.#periodBins = findPeriod(this.#folded)
    }
    const last = windowSums.map((sum) => sum / windowSteps)
    const correction = 1 - decay ** this.#steps
    this.#pending = {
      last,
      ewma: this.#average.map((x) => x / correction),
      trend: this.#trend(),
      periodic: this.#periodic(),
    }
    this.#choose()
  }

  /** What is expected of the steps that follow the last full bin; `null` before there is one. */
  forecast(): Forecast | null {
    const { last } = this.#pending
    if (last === null) return null
    const method = this.#pending[this.#chosen] === null ? 'last' : this.#chosen
    const scores = {} as Record<ForecastMethod, number | null>
    for (const each of forecastMethods) scores[each] = this.#score(each)
    return {
      method,
      horizonSteps: this.#options.horizonSteps,
      counts: Array.from(this.#pending[method] ?? last),
      score: scores[method],
      scores,
      backtests: Math.round(this.#errors.last[2]),
      periodSteps: this.#periodBins === null ? null : this.#periodBins * this.#options.horizonSteps,
    }
  }

  toJSON(): ForecasterState {
    const list = (values: Float64Array | null) => (values === null ? null : [...values])
    return {
      bins: this.#bins.map((bin) => [...bin]),
      partial: [...this.#partial],
      partialSteps: this.#partialSteps,
      average: [...this.#average],
      steps: this.#steps,
      periodBins: this.#periodBins,
      binsSinceDetection: this.#binsSinceDetection,
      chosen: this.#chosen,
      pending: mapMethods((method) => list(this.#pending[method])),
      errors: mapMethods((method) => [...this.#errors[method]]),
    }
  }

  /** Continues from a state whose numbers have been checked. */
  static restore(options: ForecasterOptions, state: ForecasterState): Forecaster {
    const forecaster = new Forecaster(options)
    const array = (values: readonly number[] | null) => (values === null ? null : Float64Array.from(values))
    forecaster.#bins = state.bins.map((bin) => Float64Array.from(bin))
    forecaster.#folded = forecaster.#bins.map((bin) => forecaster.#folding.fold(bin))
    forecaster.#partial = Float64Array.from(state.partial)
    forecaster.#partialSteps = state.partialSteps
    forecaster.#average = Float64Array.from(state.average)
    forecaster.#steps = state.steps
    forecaster.#periodBins = state.periodBins
    forecaster.#binsSinceDetection = state.binsSinceDetection
    forecaster.#chosen = state.chosen
    forecaster.#pending = mapMethods((method) => array(state.pending[method]))
    forecaster.#errors = mapMethods((method) => [...state.errors[method]])
    return forecaster
  }

  /** Most bins that the history holds. */
  get maxBins(): number {
    return this.#maxBins
  }

  #backtest(actual: Float64Array): void {
    const { last } = this.#pending
    const total = actual.reduce((sum, x) => sum + x, 0)
    if (last === null || total === 0) return
    const lastError = relativeError(last, actual, total)
    for (const method of forecastMethods) {
      const said = this.#pending[method]
      if (said === null) continue
      const error = this.#errors[method]
      const own = method === 'last' ? lastError : relativeError(said, actual, total)
      error[0] = error[0] * memory + own
      error[1] = error[1] * memory + lastError
      error[2]++
    }
  }

  #score(method: ForecastMethod): number | null {
    const [own, last, backtests] = this.#errors[method]
    if (backtests < leastBacktests || this.#pending[method] === null) return null
    // Both never wrong: as good as each other.
    return last > 0 ? own / last : own > 0 ? Number.MAX_VALUE : 1
  }

  #choose(): void {
    let best: ForecastMethod = 'last'
    let least = this.#score('last') ?? 1
    for (const method of forecastMethods) {
      const score = this.#score(method)
      if (score !== null && score < least) {
        best = method
        least = score
      }
    }
    const used = this.#score(this.#chosen)
    if (used === null || least < used * (1 - margin)) this.#chosen = best
  }

  #trend(): Float64Array | null {
    const { horizonSteps, windowSteps, numExperts } = this.#options
    const count = Math.max(3, Math.round(windowSteps / 2 / horizonSteps))
    if (this.#bins.length < count) return null
    const bins = this.#bins.slice(-count)
    const middle = (count - 1) / 2
    const spread = (count * (count * count - 1)) / 12
    const result = new Float64Array(numExperts)
    for (let e = 0; e < numExperts; e++) {
      let mean = 0
      let slope = 0
      for (const [i, bin] of bins.entries()) {
        mean += bin[e] ?? 0
        slope += (i - middle) * (bin[e] ?? 0)
      }
      result[e] = Math.max(0, mean / count + (slope / spread) * (count - middle))
    }
    return result
  }

  #periodic(): Float64Array | null {
    const period = this.#periodBins
    const length = this.#bins.length
    if (period === null || length < period + 1) return null
    const result = new Float64Array(this.#options.numExperts)
    const cycles = Math.min(3, Math.floor(length / period))
    for (let cycle = 1; cycle <= cycles; cycle++) {
      // The bin to come has number `length`; between two bins, their mean weighted by the distance.
      const position = Math.max(0, length - cycle * period)
      const lower = Math.min(length - 1, Math.floor(position))
      const upper = Math.min(length - 1, lower + 1)
      const [a, b, fraction] = [this.#bins[lower], this.#bins[upper], position - lower]
      for (let e = 0; e < result.length; e++) {
        result[e] = (result[e] ?? 0) + ((1 - fraction) * (a?.[e] ?? 0) + fraction * (b?.[e] ?? 0)) / cycles
      }
    }
    return result
  }
}

function relativeError(said: Float64Array, actual: Float64Array, total: number): number {
  let error = 0
  for (let e = 0; e < actual.length; e++) error += Math.abs((said[e] ?? 0) - (actual[e] ?? 0))
  return error / total
}

function mapMethods<T>(value: (method: ForecastMethod) => T): Record<ForecastMethod, T> {
  return { last: value('last'), ewma: value('ewma'), trend: value('trend'), periodic: value('periodic') }
}

function noErrors(): Record<ForecastMethod, [number, number, number]> {
  return mapMethods(() => [0, 0, 0])
}
