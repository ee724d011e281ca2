/**
 * Expert load of a Mixture-of-Experts layer over time. Feed it the counts of each step; ask it which experts are hot, how
 * uneven the load is, and whether it drifts. Pure TypeScript without a dependency: it runs wherever the counts are.
 *
 * @packageDocumentation
 */
export type { ExpertLoad, ExpertProfilerOptions, ProfilerSnapshot, ProfilerState, StepSample } from './model.js'
export { ExpertProfiler } from './profiler.js'
export { loadImbalance, normalizedEntropy, totalVariation } from './statistics.js'
export type { Temperature } from './temperature.js'
