/** The plain data that goes into a profiler and comes out of it. */
import type { ForecasterState } from './forecast.js'
import type { Temperature } from './temperature.js'

/** Options of an {@link ExpertProfiler}. Unknown keys are refused by name. */
export interface ExpertProfilerOptions {
  /** Experts of the layer, 1 to 65536. */
  readonly numExperts: number
  /**
   * Steps in the rolling window, 2 to 65536.
   * @default 64
   */
  readonly windowSteps?: number
  /**
   * Steps after which a step's weight in the exponential averages has halved, greater than 0.
   * @default 16
   */
  readonly halfLifeSteps?: number
  /**
   * Share of the load that the hot experts carry together, in (0, 1).
   * @default 0.5
   */
  readonly hotShare?: number
  /**
   * Share of the load that the cold experts carry together, in (0, 1 - hotShare].
   * @default 0.1
   */
  readonly coldShare?: number
  /**
   * How far a hot expert's load lies at least above the mean, and a cold one's below it, as a factor of 1 or more: without it a
   * perfectly even load would have hot and cold experts too, by the order of their numbers.
   * @default 1.25
   */
  readonly contrast?: number
  /**
   * How far past a boundary an expert has to go before it leaves the temperature it has, as a share of the load, in [0, 0.5).
   * @default 0.05
   */
  readonly hysteresis?: number
  /**
   * Assignments (tokens times experts per token) that the window must hold before experts have a temperature; below it all
   * are `'unknown'`. At least 1.
   * @default 32 * numExperts
   */
  readonly minAssignments?: number
  /**
   * Steps that a forecast is for, and the resolution of the history, 1 to 4096. A period is found from 4 horizons on.
   * @default 8
   */
  readonly horizonSteps?: number
  /**
   * Steps of the history in which periods are looked for, at least 4 horizons; the longest period that is found is two thirds of it.
   * @default 128 * horizonSteps
   */
  readonly historySteps?: number
}

/** How a forecast was made; see {@link Forecast}. */
export type ForecastMethod = 'last' | 'ewma' | 'trend' | 'periodic'

/**
 * What is expected of the steps to come. The method is the one with the least error in the rolling backtest: every horizon, what
 * each of them had said is held against what came, by Σ_e |said_e - came_e| / Σ_e came_e, summed with weights 0.95^age.
 */
export interface Forecast {
  /** `'last'` (the mean of the last window) unless another was better by 3 % over at least 4 backtests. */
  readonly method: ForecastMethod
  /** Steps that it is for, from the end of the last full horizon on. */
  readonly horizonSteps: number
  /** Expected mean assignments per step, by expert. */
  readonly counts: readonly number[]
  /** The method's error over that of `'last'` in the same backtests: below 1 is better; `null` before 4 backtests. */
  readonly score: number | null
  /** The score of every method; `null` for one that has nothing to say or too few backtests. */
  readonly scores: Readonly<Record<ForecastMethod, number | null>>
  /** Backtests so far. */
  readonly backtests: number
  /** The period found in the history, in steps; `null` when nothing repeats. */
  readonly periodSteps: number | null
}

/** One step of the layer. */
export interface StepSample {
  /** Assignments per expert: `numExperts` integers of at least 0. Copied; the array may be reused. */
  readonly counts: ArrayLike<number>
  /**
   * Tokens of the step.
   * @default null (not known: the window's tokens are then `null` too)
   */
  readonly tokens?: number | null
  /**
   * Duration of the step in milliseconds.
   * @default null (not measured)
   */
  readonly timeMs?: number | null
  /**
   * Energy of the step in joules, of the layer as a whole.
   * @default null (not measured)
   */
  readonly energyJoules?: number | null
  /**
   * Duration of each expert's work in milliseconds, `numExperts` numbers of at least 0. Copied.
   * @default null (not measured)
   */
  readonly expertTimesMs?: ArrayLike<number> | null
  /**
   * Energy of each expert's work in joules, `numExperts` numbers of at least 0. Copied.
   * @default null (not measured)
   */
  readonly expertEnergyJoules?: ArrayLike<number> | null
}

/** What is known of one expert. */
export interface ExpertLoad {
  readonly expert: number
  /** Assignments in the window. */
  readonly count: number
  /** Share of the window's assignments, 0 to 1; 0 while there are none. */
  readonly share: number
  /** Exponential average of the assignments per step; 0 before the first step. */
  readonly averageCount: number
  /** Assignments since the start or the last reset. */
  readonly totalCount: number
  /** Mean milliseconds a step, over the window's steps that said; `null` when none did. */
  readonly meanTimeMs: number | null
  /** Mean joules a step, over the window's steps that said; `null` when none did. */
  readonly meanEnergyJoules: number | null
  readonly temperature: Temperature
}

/** The state of the load at one moment, as plain data. */
export interface ProfilerSnapshot {
  readonly numExperts: number
  /** Steps recorded since the start or the last reset. */
  readonly steps: number
  /** Steps that the window holds now, at most the option `windowSteps`. */
  readonly windowSteps: number
  /** Assignments in the window. */
  readonly assignments: number
  /** Tokens in the window; `null` when a step did not say. */
  readonly tokens: number | null
  /** Mean duration in milliseconds of the window's measured steps; `null` when there are none. */
  readonly meanStepMs: number | null
  /** Mean energy in joules of the window's metered steps; `null` when there are none. */
  readonly meanStepJoules: number | null
  /** By expert number. */
  readonly experts: readonly ExpertLoad[]
  /** Largest over mean count in the window, 1 (even) to numExperts (all on one); `null` while the window is empty of assignments. */
  readonly loadImbalance: number | null
  /** Entropy of the shares over ln(numExperts), 0 (all on one) to 1 (even); `null` while the window is empty of assignments. */
  readonly normalizedEntropy: number | null
  /**
   * Total-variation distance between the shares in the older and in the newer half of the window, 0 (same) to 1 (disjoint);
   * `null` while a half is empty of assignments.
   */
  readonly drift: number | null
  /** `null` before the first full horizon. */
  readonly forecast: Forecast | null
}

/** Everything a profiler knows, as JSON-safe data: `ExpertProfiler.restore` continues from it exactly. */
export interface ProfilerState {
  readonly format: 'nexus-profiler/2'
  readonly options: Required<ExpertProfilerOptions>
  readonly steps: number
  /** The window's steps, oldest first. */
  readonly window: readonly {
    readonly counts: readonly number[]
    readonly tokens: number | null
    readonly timeMs: number | null
    readonly energyJoules: number | null
    readonly expertTimesMs: readonly number[] | null
    readonly expertEnergyJoules: readonly number[] | null
  }[]
  /** Exponentially weighted sums of counts, before the correction for the start. */
  readonly averages: readonly number[]
  readonly totals: readonly number[]
  readonly temperatures: readonly Temperature[]
  readonly forecaster: ForecasterState
}
