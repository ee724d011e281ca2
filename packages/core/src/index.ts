/**
 * A Mixture-of-Experts layer on CPU and CUDA: {@link MoELayer}, whose experts may run in slices of the chip, on streams and by recorded
 * graphs; its textbook yardstick {@link BaselineMoELayer}; and every part of which it is made, for schedulers of one's own.
 *
 * @packageDocumentation
 */

// Names that two packages have: the one that most people mean, and the other by a longer name.
export type { ExpertLoad as EnergyExpertLoad, PowerModel } from '@nexus/energy'
export * from '@nexus/energy'
export * from '@nexus/graphs'
export * from '@nexus/native'
export type { ExpertLoad } from '@nexus/profiler'
export * from '@nexus/profiler'
export { CountRing } from '@nexus/profiler/native'
export * from '@nexus/router-kernels'
export type { Arrangement } from '@nexus/slices'
export * from '@nexus/slices'
export type { Arrangement as TenantArrangement } from '@nexus/streams'
export * from '@nexus/streams'
export { BaselineMoELayer, type BaselineOptions } from './baseline.js'
export type { LayerSpec } from './checkpoint/family.js'
export {
  type CheckpointInfo,
  type FromCheckpointOptions,
  inspectCheckpoint,
  type LoadProgress,
} from './checkpoint/from-checkpoint.js'
export type { EnqueueOptions, ForwardOptions, ForwardResult } from './inputs.js'
export { MoELayer } from './layer.js'
export type { LayerConfig, LayerOptions, MoELayerOptions, SharedExpertOptions } from './options.js'
export { type LayerScheduleOptions, type LayerTenant, schedule } from './schedule.js'
export type { Candidate } from './scheduling/choice.js'
export type { LayerEnergyStats } from './scheduling/energy.js'
export type { CoreMessage, SchedulingFailure } from './scheduling/errors.js'
export type { LaneTrace } from './scheduling/exec.js'
export type {
  Determinism,
  LayerGraphOptions,
  LayerSliceOptions,
  LayerStreamOptions,
  SchedulingOptions,
  StrategyName,
} from './scheduling/options.js'
export type { StepPlan } from './scheduling/plan.js'
export type {
  LayerProfilerStats,
  LayerSliceStats,
  LayerStreamStats,
  SchedulingStats,
  StrategyStats,
} from './scheduling/stats.js'
export type { TrialReport, TrialStats } from './scheduling/trials.js'
export type { LayerStats, PhaseTimes, StepStats } from './stats.js'
export { type TuneDevice, type TuningInForce, tuningFor } from './tuning/in-force.js'
export type { TunedCell, TunedStep, TunedTimes, TuneReport } from './tuning/report.js'
export { type SaveTuningOptions, saveTuning } from './tuning/save.js'
export { type ModelShape, modelShape } from './tuning/shape.js'
export { tuneFilePath } from './tuning/store.js'
export { type TuneOptions, type TuneProgress, tune } from './tuning/tune.js'
export {
  type TunedLinear,
  type TunedRows,
  type TuneFile,
  TuneFileError,
  type VariantTimes,
} from './tuning/tune-file.js'
export type { WeightLayout } from './weight-layout.js'
export type { LayerWeights } from './weights.js'
