/**
 * Shares of a chip for the experts of a Mixture-of-Experts layer. A policy, a pure function, decides from the load of the experts how many
 * SMs they get; the manager checks it, keeps reserved slices beside it, and makes plans, which are plain data.
 * @packageDocumentation
 */
export { type Arrangement, arrange, sliceCount } from './arrange.js'
export { conformance, situations, type Violation } from './conformance.js'
export {
  type CostByLoad,
  type CostModel,
  costOfLoad,
  expertBytes,
  expertFlops,
  type GatedExpertShape,
  gatedExpertCost,
  type Placement,
  predictExpertUs,
  type StepPrediction,
} from './cost.js'
export { describeDevice } from './describe-device.js'
export {
  type Curve,
  type CurvePoint,
  type DeviceDescription,
  h200,
  interpolate,
  saturatingSms,
  smsForBandwidth,
} from './device.js'
export { type EnforcerMode, SliceEnforcer, type SliceEnforcerOptions, type SliceEnforcerStats } from './enforcer.js'
export { SliceAllocationError } from './errors.js'
export { decide, decisionViolations } from './guard.js'
export { hopperTile, hopperTiles, type TiledExperts } from './hopper-tiles.js'
export { SliceManager } from './manager.js'
export type { SliceManagerOptions, SliceManagerStats } from './manager-options.js'
export { type PartitionHold, type PartitionSlice, SlicePartition, type SliceStreamOptions } from './partition.js'
export type { Enforcement, EnforcementKind, Enforcer, Layout, Plan, SliceBudget } from './plan.js'
export { type AdaptiveOptions, type DynamicOptions, policies } from './policies.js'
export type { AllocationPolicy, Constraints, CurrentPlacement, Decision, PolicySnapshot } from './policy.js'
export { type EnergyPrediction, type PowerModel, predictEnergy } from './power.js'
export { predictStep } from './predict.js'
export { auxSlice, type SliceRequest } from './reservations.js'
export { tileCost } from './tile-cost.js'
export type { DividedTile, TiledLinear, TileModel, TileShape } from './tile-model.js'
