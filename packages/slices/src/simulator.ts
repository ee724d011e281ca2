/**
 * The offline simulator: routing traces, synthetic or recorded, replayed through allocation policies without a GPU; and the calibration of its
 * cost model by step times that were measured on one.
 * @packageDocumentation
 */

export { hopperTile } from './hopper-tiles.js'
export { type Agreement, agreement, predictRow, type RowAgreement } from './simulator/agreement.js'
export {
  type CalibrateOptions,
  type Calibration,
  type CalibrationParameters,
  calibrate,
  crossValidate,
} from './simulator/calibrate.js'
export { type CompareOptions, type Comparison, compare, type Estimate, estimate, ratio } from './simulator/compare.js'
export {
  checkMeasurements,
  type MeasuredShape,
  rowsOf,
  type StepMeasurement,
  type StepMeasurements,
} from './simulator/measurements.js'
export {
  calibrateRegimes,
  costFor,
  type Regime,
  type RegimeCalibration,
  type RegimeParameters,
} from './simulator/regimes.js'
export { type SimulateOptions, type SimulationResult, simulate, simulateAll } from './simulator/simulate.js'
export {
  calibrateTiles,
  type TileCalibration,
  type TileParameters,
  type TileRegime,
  tilesFor,
} from './simulator/tile-regimes.js'
export { predictTiles } from './simulator/tiles.js'
export {
  recordedTrace,
  syntheticTrace,
  type Trace,
  type TraceKind,
  type TraceOptions,
  traceKinds,
} from './simulator/traces.js'
export type { DividedTile, TiledLinear, TileModel, TileShape } from './tile-model.js'
