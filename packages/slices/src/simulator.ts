/**
 * The offline simulator: routing traces, synthetic or recorded, replayed through allocation policies without a GPU.
 * @packageDocumentation
 */
export { type CompareOptions, type Comparison, compare, type Estimate, estimate, ratio } from './simulator/compare.js'
export { type SimulateOptions, type SimulationResult, simulate, simulateAll } from './simulator/simulate.js'
export {
  recordedTrace,
  syntheticTrace,
  type Trace,
  type TraceKind,
  type TraceOptions,
  traceKinds,
} from './simulator/traces.js'
