/** The plain data of this package. Energies are joules, powers watts, activities shares from 0 to 1, times milliseconds. */

/**
 * Where an energy comes from. `'nvml-energy-counter'`: the GPU's own counter. `'nvml-power-integral'`: power samples
 * integrated over time. `'rapl'`: the processor's own counters.
 */
export type EnergySource = 'nvml-energy-counter' | 'nvml-power-integral' | 'rapl'

/** Why clocks are where they are, as NVML says. `'gpu-idle'` and the two settings are no slow-down. */
export type ThrottleReason =
  | 'gpu-idle'
  | 'applications-clocks-setting'
  | 'sw-power-cap'
  | 'hw-slowdown'
  | 'sync-boost'
  | 'sw-thermal-slowdown'
  | 'hw-thermal-slowdown'
  | 'hw-power-brake-slowdown'
  | 'display-clock-setting'

/** One look at the device. `null`: not known; `EnergyMonitor.status()` says why. */
export interface PowerSample {
  /** On the clock of `performance.now()`. */
  readonly timeMs: number
  /** Running total of the energy counter since the device's first monitor started: differences mean something, the number does not. */
  readonly joules: number | null
  /** The same of the memory alone, where it is counted apart (RAPL). */
  readonly memoryJoules: number | null
  /** How often the counter went back so far, and how often it was seen to move. */
  readonly resets: number
  readonly ticks: number
  /** Instant power. */
  readonly watts: number | null
  /** The driver's own average: 1 s on Hopper. */
  readonly averageWatts: number | null
  readonly memoryWatts: number | null
  /** Share of time in which any kernel ran. Not the share of SMs. */
  readonly gpuUtilisation: number | null
  /** Share of time in which device memory was read or written. */
  readonly memoryUtilisation: number | null
  /** Share of SMs that had work (GPM, as the next three). */
  readonly smActivity: number | null
  readonly smOccupancy: number | null
  readonly tensorActivity: number | null
  readonly dramActivity: number | null
  readonly throttle: readonly ThrottleReason[] | null
}

/** The figures of a sample that may be unknown. */
export type Figure = Exclude<keyof PowerSample, 'timeMs' | 'resets' | 'ticks'>

/** The figures of a measurement that may be `null`. */
export type Measured =
  | 'joules'
  | 'meanWatts'
  | 'idleJoules'
  | 'activeJoules'
  | 'memoryJoules'
  | 'gpuUtilisation'
  | 'memoryUtilisation'
  | 'smActivity'
  | 'smOccupancy'
  | 'tensorActivity'
  | 'dramActivity'
  | 'throttle'

/** The energy of a window of time: of the whole device, whoever used it. */
export interface Measurement {
  /** What was metered: `'cpu'`, `'cuda:0'`, or a UUID. */
  readonly device: string
  readonly joules: number | null
  /** Where `joules` comes from; `null` where it is `null`. */
  readonly source: EnergySource | null
  /** Why `joules` is `null`; `null` where it is known. */
  readonly reason: string | null
  /** How long the work took. */
  readonly windowMs: number
  /** joules / window. */
  readonly meanWatts: number | null
  /** What the device would have used without the work: idle watts × window, at most `joules`. `activeJoules` is the rest. */
  readonly idleJoules: number | null
  readonly activeJoules: number | null
  /** The part that the memory used: RAPL's dram, or the GPU's memory power integrated. Within `joules`. */
  readonly memoryJoules: number | null
  /** How often the counter was seen to move: the energy is known to about one part in this. `null` without a counter. */
  readonly ticks: number | null
  /** Which power was integrated, where `source` is `'nvml-power-integral'`. */
  readonly power: 'instant' | 'average' | null
  /** Samples within the window; what follows are means over them. */
  readonly samples: number
  readonly gpuUtilisation: number | null
  readonly memoryUtilisation: number | null
  readonly smActivity: number | null
  readonly smOccupancy: number | null
  readonly tensorActivity: number | null
  readonly dramActivity: number | null
  /** For each reason that was seen, the share of samples that had it. */
  readonly throttle: Readonly<Partial<Record<ThrottleReason, number>>> | null
  /** For each figure that is `null`, why. */
  readonly reasons: Readonly<Partial<Record<Measured, string>>>
}

/** The power of a device that does nothing. */
export interface IdleBaseline {
  readonly watts: number | null
  readonly source: EnergySource | null
  readonly windowMs: number
  /** Why `watts` is `null`. */
  readonly reason: string | null
}

/** How a monitor fares at this moment. */
export interface EnergyStatus {
  /** For each figure that is unknown now, why. */
  readonly unknown: Readonly<Partial<Record<Figure, string>>>
  /** The NVML call that the sampler thread is waiting for, and for how long; `null` for none. */
  readonly blocked: { readonly call: string; readonly ms: number } | null
  /** Samples that had to make room for newer ones so far. */
  readonly droppedSamples: number
}
