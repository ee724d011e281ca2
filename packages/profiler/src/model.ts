/** The plain data that goes into a profiler and comes out of it. */
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
}

/** Everything a profiler knows, as JSON-safe data: `ExpertProfiler.restore` continues from it exactly. */
export interface ProfilerState {
  readonly format: 'nexus-profiler/1'
  readonly options: Required<ExpertProfilerOptions>
  readonly steps: number
  /** The window's steps, oldest first. */
  readonly window: readonly {
    readonly counts: readonly number[]
    readonly tokens: number | null
    readonly timeMs: number | null
  }[]
  /** Exponentially weighted sums of counts, before the correction for the start. */
  readonly averages: readonly number[]
  readonly totals: readonly number[]
  readonly temperatures: readonly Temperature[]
}
