/**
 * Expert load of a Mixture-of-Experts layer over time. Feed it the counts of each step; ask it which experts are hot, how
 * uneven the load is, whether it drifts, and what to expect of the next steps. Pure TypeScript without a dependency: it runs wherever the counts are.
 *
 * @packageDocumentation
 */
export type { ForecasterState } from './forecast.js'
export type {
  ExpertLoad,
  ExpertProfilerOptions,
  Forecast,
  ForecastMethod,
  ProfilerSnapshot,
  ProfilerState,
  StepSample,
} from './model.js'
export { ModelProfiler, type ModelProfilerState } from './model-profiler.js'
export { ExpertProfiler } from './profiler.js'
export { loadImbalance, normalizedEntropy, totalVariation } from './statistics.js'
export type { Temperature } from './temperature.js'
export { profilerOptionKeys } from './validate.js'
