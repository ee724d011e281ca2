/**
 * From measured windows to the profiler's steps. A window of seconds has thousands of steps, and no sensor sees one of them: a step's energy is its
 * modelled share of the window's, and an expert's is its modelled share of the step's (`attribute`). So the parts that the profiler is given sum
 * to what was measured, and what the model was off by before that is reported.
 */
import { checkInteger, checkOneOf, checkOptions, describe } from '@nexus/native'
import {
  type Attribution,
  type AttributionOptions,
  attribute,
  type ExpertShape,
  expertLoads,
  tokensPerJoule,
} from './attribution.js'
import type { Measurement } from './model.js'
import type { EnergyMonitor, MeasureOptions } from './monitor.js'

/** A step as it came. */
export interface FeedStep {
  /** Assignments by expert. Copied. */
  readonly counts: ArrayLike<number>
  readonly tokens?: number | null
  readonly timeMs?: number | null
}

/** What takes the steps, with what they cost: an `ExpertProfiler` is one. */
export interface StepRecorder {
  record(step: {
    readonly counts: ArrayLike<number>
    readonly tokens: number | null
    readonly timeMs: number | null
    readonly energyJoules: number | null
    readonly expertTimesMs: ArrayLike<number> | null
    readonly expertEnergyJoules: ArrayLike<number> | null
  }): void
}

export interface EnergyFeedOptions extends AttributionOptions {
  readonly profiler: StepRecorder
  /** The layer's experts. */
  readonly shape: ExpertShape
  /**
   * `'live'`: steps are recorded at once, with the model's energy times measured / modelled of the last window that was known (`null` before there
   * was one). `'window'`: steps wait for the end of their window and are recorded with their part of it.
   * @default 'live'
   */
  readonly mode?: 'live' | 'window'
  /**
   * Modelled times of experts from the counts, in any unit, such as `predictExpertUs` of @nexus/slices; they are rescaled to the step's time.
   * @default none (the times of experts are not known)
   */
  readonly expertTimes?: (counts: ArrayLike<number>) => ArrayLike<number>
  /**
   * With the mode 'window': steps that wait at most; the oldest is then recorded without its energy.
   * @default 65536
   */
  readonly maxPendingSteps?: number
}

/** What a window came to. */
export interface WindowAttribution extends Attribution {
  readonly steps: number
  /** `null` when a step did not say. */
  readonly tokens: number | null
  readonly tokensPerJoule: number | null
  /** Steps of the window that were recorded without an energy: too many, or nothing was measured (`reason`). */
  readonly unmeteredSteps: number
}

const optionKeys = ['profiler', 'shape', 'mode', 'expertTimes', 'maxPendingSteps', 'joulesPerByte', 'joulesPerFlop']

interface Pending {
  readonly counts: Float64Array
  readonly tokens: number | null
  readonly timeMs: number | null
}

/**
 * @example
 * ```ts
 * const feed = new EnergyFeed({ profiler, shape: { inputDim: 2048, hiddenDim: 768 } })
 * const window = await meterSteps(monitor, feed, async () => {
 *   for (let i = 0; i < 1000; i++) feed.record(await step())
 * })
 * window.residualShare                             // how far the model was off
 * profiler.snapshot().experts[0].meanEnergyJoules  // the next windows' steps have theirs
 * ```
 */
export class EnergyFeed {
  readonly #options: EnergyFeedOptions
  readonly #live: boolean
  readonly #maxPending: number
  readonly #weightJoules: number
  readonly #tokenJoules: number
  #pending: Pending[] = []
  #scale: number | null = null
  // Of the window: by expert, and over all steps.
  #counts = new Float64Array(0)
  #active = new Float64Array(0)
  #steps = 0
  #tokens: number | null = 0
  #unmetered = 0

  /** @throws TypeError, RangeError naming the option */
  constructor(options: EnergyFeedOptions) {
    if (typeof options !== 'object' || options === null) {
      throw new TypeError(`options: expected an object, got ${describe(options)}`)
    }
    checkOptions('options', options, optionKeys)
    if (typeof options.profiler?.record !== 'function') {
      throw new TypeError(`options.profiler: expected an ExpertProfiler, got ${describe(options.profiler)}`)
    }
    if (options.expertTimes !== undefined && typeof options.expertTimes !== 'function') {
      throw new TypeError(`options.expertTimes: expected a function, got ${describe(options.expertTimes)}`)
    }
    this.#options = options
    this.#live = checkOneOf('options.mode', options.mode ?? 'live', ['live', 'window']) === 'live'
    this.#maxPending = checkInteger('options.maxPendingSteps', options.maxPendingSteps ?? 65536, 1)
    // Both are checked there; one token and two say what a token and what the weights cost.
    const none = { joules: null, activeJoules: null, reason: null }
    const joules = (tokens: number) =>
      attribute(expertLoads([tokens], options.shape), none, this.#prices()).modelledJoules
    this.#tokenJoules = joules(2) - joules(1)
    this.#weightJoules = joules(1) - this.#tokenJoules
  }

  /** measured / modelled of the last window whose energy was known; `null` before. Far from 1, the prices are not this device's. */
  get scale(): number | null {
    return this.#scale
  }

  /**
   * A step of the current window.
   * @throws TypeError, RangeError naming what is wrong with it (what the profiler throws); nothing has changed then
   */
  record(step: FeedStep): void {
    checkOptions('step', step, ['counts', 'tokens', 'timeMs'])
    const { counts, tokens = null, timeMs = null } = step
    const copy = Float64Array.from(counts)
    for (const [e, n] of copy.entries()) checkInteger(`step.counts[${e}]`, n, 0)
    if (this.#steps > 0 && copy.length !== this.#counts.length) {
      throw new RangeError(`step.counts: expected ${this.#counts.length} experts as before, got ${copy.length}`)
    }
    if (this.#live) this.#give({ counts: copy, tokens, timeMs }, this.#scale)
    else {
      if (this.#pending.length >= this.#maxPending) {
        const oldest = this.#pending.shift()
        if (oldest) this.#give(oldest, null)
      }
      this.#pending.push({ counts: copy, tokens, timeMs })
    }
    if (this.#steps === 0) {
      this.#counts = new Float64Array(copy.length)
      this.#active = new Float64Array(copy.length)
    }
    this.#steps++
    this.#tokens = this.#tokens === null || tokens === null ? null : this.#tokens + tokens
    for (let e = 0; e < copy.length; e++) {
      this.#counts[e] = (this.#counts[e] ?? 0) + (copy[e] ?? 0)
      if ((copy[e] ?? 0) > 0) this.#active[e] = (this.#active[e] ?? 0) + 1
    }
  }

  /** Ends the window: shares its energy out, records the steps that waited for it, and begins the next. */
  close(measurement: Pick<Measurement, 'joules' | 'activeJoules' | 'reason'>): WindowAttribution {
    const loads = expertLoads(this.#counts, this.#options.shape, this.#active)
    const shared = attribute(loads, measurement, this.#prices())
    const { measuredJoules, modelledJoules } = shared
    const scale = measuredJoules === null || modelledJoules === 0 ? null : measuredJoules / modelledJoules
    const [steps, tokens, pending] = [this.#steps, this.#tokens, this.#pending]
    this.#pending = []
    this.#steps = 0
    this.#tokens = 0
    if (scale !== null) this.#scale = scale
    for (const step of pending) this.#give(step, scale)
    const unmeteredSteps = this.#unmetered
    this.#unmetered = 0
    const perJoule = tokens === null ? null : tokensPerJoule(tokens, measurement)
    return { ...shared, steps, tokens, tokensPerJoule: perJoule, unmeteredSteps }
  }

  #prices(): AttributionOptions {
    const { joulesPerByte, joulesPerFlop } = this.#options
    return {
      ...(joulesPerByte === undefined ? {} : { joulesPerByte }),
      ...(joulesPerFlop === undefined ? {} : { joulesPerFlop }),
    }
  }

  /** @param scale joules of a modelled one; `null` when it is not known */
  #give({ counts, tokens, timeMs }: Pending, scale: number | null): void {
    let energyJoules: number | null = null
    let expertEnergyJoules: Float64Array | null = null
    if (scale !== null) {
      let sum = 0
      expertEnergyJoules = counts.map((n) => {
        const joules = n === 0 ? 0 : scale * (this.#weightJoules + n * this.#tokenJoules)
        sum += joules
        return joules
      })
      energyJoules = sum
    }
    const expertTimesMs = timeMs === null ? null : this.#times(counts, timeMs)
    this.#options.profiler.record({ counts, tokens, timeMs, energyJoules, expertTimesMs, expertEnergyJoules })
    if (scale === null) this.#unmetered++
  }

  #times(counts: Float64Array, timeMs: number): Float64Array | null {
    const times = this.#options.expertTimes?.(counts)
    if (times === undefined) return null
    let sum = 0
    for (let e = 0; e < times.length; e++) sum += times[e] ?? 0
    return Float64Array.from(times, (each) => (sum > 0 ? (each * timeMs) / sum : 0))
  }
}

/**
 * Runs `fn`, which calls `feed.record` for each of its steps, and measures and shares out what the device used meanwhile. When `fn` fails, its steps
 * are recorded without an energy, and its error is thrown.
 */
export async function meterSteps(
  monitor: Pick<EnergyMonitor, 'measure'>,
  feed: EnergyFeed,
  fn: () => unknown,
  options: MeasureOptions = {},
): Promise<WindowAttribution & { readonly measurement: Measurement }> {
  let measured: Measurement
  try {
    const { result: _, ...measurement } = await monitor.measure(fn, options)
    measured = measurement
  } catch (error) {
    feed.close({ joules: null, activeJoules: null, reason: 'the work failed' })
    throw error
  }
  return { ...feed.close(measured), measurement: measured }
}
