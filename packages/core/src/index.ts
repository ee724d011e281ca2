/**
 * A Mixture-of-Experts layer on CPU and CUDA: {@link MoELayer}, its textbook yardstick {@link BaselineMoELayer}, and everything of
 * `@nexus/router-kernels` and `@nexus/native` that one needs beside it.
 *
 * @packageDocumentation
 */
export * from '@nexus/native'
export * from '@nexus/router-kernels'
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
export type { LayerConfig, MoELayerOptions, SharedExpertOptions } from './options.js'
export type { LayerStats, PhaseTimes, StepStats } from './stats.js'
export type { LayerWeights } from './weights.js'
