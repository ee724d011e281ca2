/**
 * The profiler: a ring of the last steps' counts with running sums (integers, so they never lose precision), exponential
 * averages, and the temperatures that follow from the window. Recording a step costs O(E log E); the drift, which needs a
 * pass over the window, is computed when a snapshot asks for it.
 */
import type { ExpertProfilerOptions, ProfilerSnapshot, ProfilerState, StepSample } from './model.js'
import { loadImbalance, normalizedEntropy, totalVariation } from './statistics.js'
import { classify, type Temperature } from './temperature.js'
import { checkInteger, checkNumber, checkObject, describe, resolveOptions } from './validate.js'

interface WindowStep {
  counts: Float64Array
  tokens: number | null
  timeMs: number | null
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

  /** @throws TypeError or RangeError that names the option, what came and what was expected. */
  constructor(options: ExpertProfilerOptions) {
    this.options = Object.freeze(resolveOptions(options))
    const { numExperts, halfLifeSteps } = this.options
    this.#decay = 2 ** (-1 / halfLifeSteps)
    this.#sums = new Float64Array(numExperts)
    this.#totals = new Float64Array(numExperts)
    this.#averages = new Float64Array(numExperts)
    this.#temperatures = new Array<Temperature>(numExperts).fill('unknown')
  }

  /**
   * Takes one step into account. Nothing is changed when it throws.
   * @throws TypeError or RangeError that names the argument, what came and what was expected.
   */
  record(step: StepSample): void {
    const sample = checkStep(step, this.options.numExperts)
    this.#push(sample)
    const { counts } = sample
    for (const [e, count] of counts.entries()) {
      this.#totals[e] = (this.#totals[e] ?? 0) + count
      this.#averages[e] = (this.#averages[e] ?? 0) * this.#decay + (1 - this.#decay) * count
    }
    this.#steps++
    const assignments = this.#assignments()
    if (assignments >= this.options.minAssignments) {
      this.#temperatures = classify(this.#sums, this.#temperatures, this.options)
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
    const times = ordered.flatMap((step) => (step.timeMs === null ? [] : [step.timeMs]))
    const tokens = ordered.map((step) => step.tokens)
    return {
      numExperts: this.options.numExperts,
      steps: this.#steps,
      windowSteps: ordered.length,
      assignments,
      tokens: tokens.some((n) => n === null) ? null : tokens.reduce<number>((total, n) => total + (n ?? 0), 0),
      meanStepMs: times.length === 0 ? null : times.reduce((total, t) => total + t, 0) / times.length,
      experts: Array.from(this.#sums, (count, expert) => ({
        expert,
        count,
        share: assignments === 0 ? 0 : count / assignments,
        averageCount: (this.#averages[expert] ?? 0) / correction,
        totalCount: this.#totals[expert] ?? 0,
        temperature: this.#temperatures[expert] ?? 'unknown',
      })),
      loadImbalance: loadImbalance(this.#sums),
      normalizedEntropy: normalizedEntropy(this.#sums),
      drift: this.#drift(ordered),
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
  }

  /** The whole state as JSON-safe data (`JSON.stringify(profiler)` calls it); {@link ExpertProfiler.restore} takes it back. */
  toJSON(): ProfilerState {
    return {
      format: 'nexus-profiler/1',
      options: { ...this.options },
      steps: this.#steps,
      window: this.#ordered().map(({ counts, tokens, timeMs }) => ({ counts: [...counts], tokens, timeMs })),
      averages: [...this.#averages],
      totals: [...this.#totals],
      temperatures: [...this.#temperatures],
    }
  }

  /**
   * A profiler that continues exactly where the one that wrote `state` stood.
   * @throws TypeError or RangeError that names the field which is missing or wrong.
   */
  static restore(state: ProfilerState): ExpertProfiler {
    checkObject('state', state, ['format', 'options', 'steps', 'window', 'averages', 'totals', 'temperatures'])
    if (state.format !== 'nexus-profiler/1') {
      throw new TypeError(`state.format: expected "nexus-profiler/1", got ${describe(state.format)}`)
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
    profiler.#averages = numbers('state.averages', state.averages, numExperts, {
      integer: false,
      max: Number.MAX_VALUE,
    })
    profiler.#totals = numbers('state.totals', state.totals, numExperts, {
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
    return profiler
  }

  #push(sample: WindowStep): void {
    const replaced = this.#window[this.#oldest]
    if (this.#window.length < this.options.windowSteps || !replaced) {
      this.#window.push(sample)
    } else {
      for (const [e, count] of replaced.counts.entries()) this.#sums[e] = (this.#sums[e] ?? 0) - count
      this.#window[this.#oldest] = sample
      this.#oldest = (this.#oldest + 1) % this.options.windowSteps
    }
    for (const [e, count] of sample.counts.entries()) this.#sums[e] = (this.#sums[e] ?? 0) + count
  }

  #ordered(): WindowStep[] {
    return [...this.#window.slice(this.#oldest), ...this.#window.slice(0, this.#oldest)]
  }

  #assignments(): number {
    return this.#sums.reduce((total, count) => total + count, 0)
  }

  /** Between the older floor(n/2) steps of the window and the rest. */
  #drift(ordered: readonly WindowStep[]): number | null {
    const older = new Float64Array(this.options.numExperts)
    for (const { counts } of ordered.slice(0, ordered.length >> 1)) {
      for (const [e, count] of counts.entries()) older[e] = (older[e] ?? 0) + count
    }
    const newer = this.#sums.map((count, e) => count - (older[e] ?? 0))
    return totalVariation(older, newer)
  }
}

/** The largest count of one expert in one step: 2^31 - 1, what an int32 of the device can hold. */
const maxCount = 2 ** 31 - 1

function checkStep(step: StepSample, numExperts: number, name = 'step'): WindowStep {
  checkObject(name, step, ['counts', 'tokens', 'timeMs'])
  const { counts, tokens = null, timeMs = null } = step
  return {
    counts: numbers(`${name}.counts`, counts, numExperts, { integer: true, max: maxCount }),
    tokens: tokens === null ? null : checkInteger(`${name}.tokens`, tokens, 0, Number.MAX_SAFE_INTEGER),
    timeMs: timeMs === null ? null : checkNumber(`${name}.timeMs`, timeMs, { min: 0 }),
  }
}

/** Copies `length` numbers of at least 0. The name of an element is only put together when it is wrong. */
function numbers(
  name: string,
  values: unknown,
  length: number,
  range: { readonly max: number; readonly integer: boolean },
): Float64Array {
  if (!Array.isArray(values) && !(ArrayBuffer.isView(values) && !(values instanceof DataView))) {
    throw new TypeError(`${name}: expected an array of ${length} numbers, got ${describe(values)}`)
  }
  const list = values as ArrayLike<unknown>
  if (list.length !== length) throw new RangeError(`${name}: expected ${length} numbers, got ${list.length}`)
  const result = new Float64Array(length)
  for (let i = 0; i < length; i++) {
    const x = list[i]
    if (typeof x === 'number' && x >= 0 && x <= range.max && (!range.integer || Number.isInteger(x))) result[i] = x
    else if (range.integer) checkInteger(`${name}[${i}]`, x, 0, range.max)
    else checkNumber(`${name}[${i}]`, x, { min: 0, max: range.max })
  }
  return result
}
