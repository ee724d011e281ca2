/**
 * What work costs in energy: a device sampled on a native thread (NVML for GPUs, RAPL for the CPU), the joules of a function,
 * tokens per joule, and modelled shares of experts. Every figure says where it comes from; what cannot be known is `null`
 * with a reason.
 *
 * @packageDocumentation
 */
export {
  type Attribution,
  type AttributionOptions,
  attribute,
  type ExpertLoad,
  type ExpertShape,
  type ExpertShare,
  expertLoads,
  tokensPerJoule,
} from './attribution.js'
export {
  EnergyFeed,
  type EnergyFeedOptions,
  type FeedStep,
  meterSteps,
  type StepRecorder,
  type WindowAttribution,
} from './feed.js'
export {
  type EnergyInventory,
  energyInventory,
  type GpuInfo,
  type InventoryOptions,
  type MigInfo,
  type MigInstance,
  migInstanceOf,
  migOf,
} from './inventory.js'
export type {
  EnergySource,
  EnergyStatus,
  Figure,
  IdleBaseline,
  Measured,
  Measurement,
  PowerSample,
  ThrottleReason,
} from './model.js'
export { EnergyMonitor, type EnergyMonitorOptions, type IdleOptions, type MeasureOptions } from './monitor.js'
export {
  type FitPowerOptions,
  fitPower,
  modelledEnergy,
  type PowerFit,
  type PowerModel,
  type PowerObservation,
  powerModels,
} from './power.js'
