/**
 * The profiler: a ring of the last steps' counts with running sums (integers, so they never lose precision), exponential
 * averages, the temperatures that follow from the window, and the forecaster. Recording a step costs O(E) as a rule, with plain loops, for it
 * happens at every step; what needs a pass over the window (drift, means of times and energies) is computed when a snapshot asks for it.
 */
import { Forecaster } from './forecast.js'
import { checkForecasterState } from './forecaster-state.js'
import type { ExpertProfilerOptions, ProfilerSnapshot, ProfilerState, StepSample } from './model.js'
import { loadImbalance, normalizedEntropy, totalVariation } from './statistics.js'
import { Classifier, type Temperature } from './temperature.js'
import { checkInteger, checkNumber, checkNumbers, checkObject, describe, resolveOptions } from './validate.js'

interface WindowStep {
  counts: Float64Array
  tokens: number | null
  timeMs: number | null
  energyJoules: number | null
  expertTimesMs: Float64Array | null
  expertEnergyJoules: Float64Array | null
}

const temperatureNames: readonly Temperature[] = ['hot', 'warm', 'cold', 'unknown']

/**
 * Follows the load of a layer's experts.
 *
 * The exponential average of expert e after n steps is a_e = (1 - β) Σ_i β^(n-i) x_{e,i} / (1 - βⁿ) with
 * β = 2^(-1 / halfLifeSteps); the denominator removes the bias towards the zero it starts from.
 *
 * @example
 * ```ts
 * const profiler = new ExpertProfiler({ numExperts: 8 })
 * profiler.record({ counts: stats.counts, tokens: stats.tokens, timeMs: stats.times.totalMs })
 * profiler.snapshot().experts.filter((expert) => expert.temperature === 'hot')
 * ```
 */
export class ExpertProfiler {
  /** The options with their defaults filled in. */
  readonly options: Required<ExpertProfilerOptions>
  readonly #decay: number
  #steps = 0
  #window: WindowStep[] = []
  /** Index of the oldest step once the window is full; steps before that are in order from 0. */
  #oldest = 0
  #sums: Float64Array
  #totals: Float64Array
  #averages: Float64Array
  #temperatures: Temperature[]
  #forecaster: Forecaster
  readonly #classifier: Classifier

  /** @throws TypeError or RangeError that names the option, what came and what was expected. */
  constructor(options: ExpertProfilerOptions) {
    this.options = Object.freeze(resolveOptions(options))
    const { numExperts, halfLifeSteps } = this.options
    this.#decay = 2 ** (-1 / halfLifeSteps)
    this.#sums = new Float64Array(numExperts)
    this.#totals = new Float64Array(numExperts)
    this.#averages = new Float64Array(numExperts)
    this.#temperatures = new Array<Temperature>(numExperts).fill('unknown')
    this.#forecaster = new Forecaster(this.options)
    this.#classifier = new Classifier(numExperts)
  }

  /**
   * Takes one step into account. Nothing is changed when it throws.
   * @throws TypeError or RangeError that names the argument, what came and what was expected.
   */
  record(step: StepSample): void {
    const sample = checkStep(step, this.options.numExperts)
    this.#push(sample)
    const { counts } = sample
    this.#forecaster.push(counts, this.#sums, this.#window.length)
    const [totals, averages, decay] = [this.#totals, this.#averages, this.#decay]
    for (let e = 0; e < counts.length; e++) {
      const count = counts[e] ?? 0
      totals[e] = (totals[e] ?? 0) + count
      averages[e] = (averages[e] ?? 0) * decay + (1 - decay) * count
    }
    this.#steps++
    const assignments = this.#assignments()
    if (assignments >= this.options.minAssignments) {
      this.#classifier.classify(this.#sums, this.#temperatures, this.options)
    } else {
      this.#temperatures.fill('unknown')
    }
  }

  /** The temperature of each expert, by number. */
  temperatures(): Temperature[] {
    return [...this.#temperatures]
  }

  /** The load as it is now: a copy, which later steps do not change. */
  snapshot(): ProfilerSnapshot {
    const assignments = this.#assignments()
    const correction = this.#steps === 0 ? 1 : 1 - this.#decay ** this.#steps
    const ordered = this.#ordered()
    const expertTimes = meanVector(ordered.map((step) => step.expertTimesMs))
    const expertEnergies = meanVector(ordered.map((step) => step.expertEnergyJoules))
    const tokens = ordered.map((step) => step.tokens)
    return {
      numExperts: this.options.numExperts,
      steps: this.#steps,
      windowSteps: ordered.length,
      assignments,
      tokens: tokens.some((n) => n === null) ? null : tokens.reduce<number>((total, n) => total + (n ?? 0), 0),
      meanStepMs: mean(ordered.map((step) => step.timeMs)),
      meanStepJoules: mean(ordered.map((step) => step.energyJoules)),
      experts: Array.from(this.#sums, (count, expert) => ({
        expert,
        count,
        share: assignments === 0 ? 0 : count / assignments,
        averageCount: (this.#averages[expert] ?? 0) / correction,
        totalCount: this.#totals[expert] ?? 0,
        meanTimeMs: expertTimes?.[expert] ?? null,
        meanEnergyJoules: expertEnergies?.[expert] ?? null,
        temperature: this.#temperatures[expert] ?? 'unknown',
      })),
      loadImbalance: loadImbalance(this.#sums),
      normalizedEntropy: normalizedEntropy(this.#sums),
      drift: this.#drift(ordered),
      forecast: this.#forecaster.forecast(),
    }
  }

  /** Forgets every step; the options stay. */
  reset(): void {
    this.#steps = 0
    this.#window = []
    this.#oldest = 0
    this.#sums.fill(0)
    this.#totals.fill(0)
    this.#averages.fill(0)
    this.#temperatures.fill('unknown')
    this.#forecaster = new Forecaster(this.options)
  }

  /** The whole state as JSON-safe data (`JSON.stringify(profiler)` calls it); {@link ExpertProfiler.restore} takes it back. */
  toJSON(): ProfilerState {
    return {
      format: 'nexus-profiler/2',
      options: { ...this.options },
      steps: this.#steps,
      window: this.#ordered().map((step) => ({
        ...step,
        counts: [...step.counts],
        expertTimesMs: step.expertTimesMs && [...step.expertTimesMs],
        expertEnergyJoules: step.expertEnergyJoules && [...step.expertEnergyJoules],
      })),
      averages: [...this.#averages],
      totals: [...this.#totals],
      temperatures: [...this.#temperatures],
      forecaster: this.#forecaster.toJSON(),
    }
  }

  /**
   * A profiler that continues exactly where the one that wrote `state` stood.
   * @throws TypeError or RangeError that names the field which is missing or wrong.
   */
  static restore(state: ProfilerState): ExpertProfiler {
    checkObject('state', state, stateKeys)
    if (state.format !== 'nexus-profiler/2') {
      throw new TypeError(`state.format: expected "nexus-profiler/2", got ${describe(state.format)}`)
    }
    const profiler = new ExpertProfiler(state.options)
    const { numExperts, windowSteps } = profiler.options
    profiler.#steps = checkInteger('state.steps', state.steps, 0, Number.MAX_SAFE_INTEGER)
    if (!Array.isArray(state.window))
      throw new TypeError(`state.window: expected an array, got ${describe(state.window)}`)
    const held = Math.min(profiler.#steps, windowSteps)
    if (state.window.length !== held) {
      throw new RangeError(`state.window: expected ${held} steps, got ${state.window.length}`)
    }
    for (const [i, step] of state.window.entries()) profiler.#push(checkStep(step, numExperts, `state.window[${i}]`))
    profiler.#averages = checkNumbers('state.averages', state.averages, numExperts, {
      integer: false,
      max: Number.MAX_VALUE,
    })
    profiler.#totals = checkNumbers('state.totals', state.totals, numExperts, {
      integer: true,
      max: Number.MAX_SAFE_INTEGER,
    })
    const temperatures = state.temperatures
    if (!Array.isArray(temperatures) || temperatures.length !== numExperts) {
      throw new TypeError(`state.temperatures: expected ${numExperts} names, got ${describe(temperatures)}`)
    }
    profiler.#temperatures = temperatures.map((name: unknown, i) => {
      const known = temperatureNames.find((temperature) => temperature === name)
      if (known) return known
      throw new TypeError(
        `state.temperatures[${i}]: expected one of ${temperatureNames.join(', ')}, got ${describe(name)}`,
      )
    })
    profiler.#forecaster = Forecaster.restore(
      profiler.options,
      checkForecasterState('state.forecaster', state.forecaster, profiler.options, profiler.#forecaster.maxBins),
    )
    return profiler
  }

  #push(sample: WindowStep): void {
    const sums = this.#sums
    const replaced = this.#window[this.#oldest]
    if (this.#window.length < this.options.windowSteps || !replaced) {
      this.#window.push(sample)
    } else {
      const { counts } = replaced
      for (let e = 0; e < counts.length; e++) sums[e] = (sums[e] ?? 0) - (counts[e] ?? 0)
      this.#window[this.#oldest] = sample
      this.#oldest = (this.#oldest + 1) % this.options.windowSteps
    }
    const { counts } = sample
    for (let e = 0; e < counts.length; e++) sums[e] = (sums[e] ?? 0) + (counts[e] ?? 0)
  }

  #ordered(): WindowStep[] {
    return [...this.#window.slice(this.#oldest), ...this.#window.slice(0, this.#oldest)]
  }

  #assignments(): number {
    let total = 0
    for (let e = 0; e < this.#sums.length; e++) total += this.#sums[e] ?? 0
    return total
  }

  /** Between the older floor(n/2) steps of the window and the rest. */
  #drift(ordered: readonly WindowStep[]): number | null {
    const older = new Float64Array(this.options.numExperts)
    for (const { counts } of ordered.slice(0, ordered.length >> 1)) {
      for (let e = 0; e < older.length; e++) older[e] = (older[e] ?? 0) + (counts[e] ?? 0)
    }
    const newer = this.#sums.map((count, e) => count - (older[e] ?? 0))
    return totalVariation(older, newer)
  }
}

/** The largest count of one expert in one step: 2^31 - 1, what an int32 of the device can hold. */
const maxCount = 2 ** 31 - 1

const stateKeys = [
  'format',
  'options',
  'steps',
  'window',
  'averages',
  'totals',
  'temperatures',
  'forecaster',
] as const satisfies readonly (keyof ProfilerState)[]

const stepKeys = [
  'counts',
  'tokens',
  'timeMs',
  'energyJoules',
  'expertTimesMs',
  'expertEnergyJoules',
] as const satisfies readonly (keyof StepSample)[]

function checkStep(step: StepSample, numExperts: number, name = 'step'): WindowStep {
  checkObject(name, step, stepKeys)
  const { counts, tokens = null } = step
  const measure = (key: 'timeMs' | 'energyJoules') => {
    const value = step[key] ?? null
    return value === null ? null : checkNumber(`${name}.${key}`, value, { min: 0 })
  }
  const vector = (key: 'expertTimesMs' | 'expertEnergyJoules') => {
    const values = step[key] ?? null
    if (values === null) return null
    return checkNumbers(`${name}.${key}`, values, numExperts, { integer: false, max: Number.MAX_VALUE })
  }
  return {
    counts: checkNumbers(`${name}.counts`, counts, numExperts, { integer: true, max: maxCount }),
    tokens: tokens === null ? null : checkInteger(`${name}.tokens`, tokens, 0, Number.MAX_SAFE_INTEGER),
    timeMs: measure('timeMs'),
    energyJoules: measure('energyJoules'),
    expertTimesMs: vector('expertTimesMs'),
    expertEnergyJoules: vector('expertEnergyJoules'),
  }
}

/** Mean of the values that are known; `null` when none is. */
function mean(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null)
  return known.length === 0 ? null : known.reduce((total, value) => total + value, 0) / known.length
}

function meanVector(vectors: readonly (Float64Array | null)[]): Float64Array | null {
  const known = vectors.filter((vector) => vector !== null)
  const [first] = known
  if (!first) return null
  return first.map((_, e) => known.reduce((total, vector) => total + (vector[e] ?? 0), 0) / known.length)
}
