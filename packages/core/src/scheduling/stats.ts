/** What a layer reports of its scheduling, as plain data: `null` for what is off. */
import type { GraphCacheStats } from '@nexus/graphs'
import type { ProfilerSnapshot } from '@nexus/profiler'
import type { Plan, SliceEnforcerStats, SliceManagerStats } from '@nexus/slices'
import type { LayerEnergyStats } from './energy.js'
import type { SchedulingFailure } from './errors.js'
import type { StrategyName } from './options.js'
import type { StepPlan } from './plan.js'
import type { StepRunner } from './runner.js'
import type { TrialStats } from './trials.js'

/** What decides, and what was decided. */
export interface StrategyStats {
  readonly name: StrategyName
  /** Why, in one sentence. */
  readonly reason: string
  readonly candidates: StepPlan['candidates']
  /** Steps queued with each strategy. */
  readonly steps: Readonly<Record<StrategyName, number>>
  /** How often another strategy was taken. */
  readonly changes: number
  /** Failures that the layer went on after, and the last one. */
  readonly failures: number
  readonly lastFailure: SchedulingFailure | null
  /** Strategies that 'auto' has tried; `null` where it does not. */
  readonly trials: TrialStats | null
}

/** The slices of a layer. */
export interface LayerSliceStats {
  /** With the budget of each slice, its experts, and how it is held. */
  readonly plan: Plan
  readonly manager: SliceManagerStats
  readonly enforcer: SliceEnforcerStats
}

/** The streams of a layer. */
export interface LayerStreamStats {
  readonly count: number
  readonly assignment: string
  /** Experts of each stream, by number. */
  readonly experts: readonly (readonly number[])[]
}

export interface LayerProfilerStats {
  readonly snapshot: ProfilerSnapshot
  /** Steps whose counts were overwritten before they were read. */
  readonly lostSteps: number
}

/** The part of `performanceStats()` that is about scheduling. */
export interface SchedulingStats {
  /** `null` for a baseline, which has none. */
  readonly strategy: StrategyStats | null
  readonly slices: LayerSliceStats | null
  readonly streams: LayerStreamStats | null
  readonly graphs: GraphCacheStats | null
  readonly profiler: LayerProfilerStats | null
  readonly energy: LayerEnergyStats | null
}

export const noScheduling: SchedulingStats = {
  strategy: null,
  slices: null,
  streams: null,
  graphs: null,
  profiler: null,
  energy: null,
}

/** @param tokens queued so far */
export function schedulingStats(runner: StepRunner, tokens: number): SchedulingStats {
  const { control, graphs, energy } = runner
  control.drain(runner.queued)
  const { plan, failures, slicing, streams, profiler } = control
  const { strategy: name, reason, candidates } = plan
  return {
    strategy: {
      name,
      reason,
      candidates,
      steps: runner.steps,
      changes: control.changes,
      failures: failures.count,
      lastFailure: failures.last,
      trials: control.trials?.stats() ?? null,
    },
    slices: slicing && {
      plan: plan.slices ?? slicing.manager.plan,
      manager: slicing.manager.stats(),
      enforcer: slicing.enforcer.stats(),
    },
    streams: streams && {
      count: streams.count,
      assignment: streams.assignment.name,
      experts: expertsByStream(plan.streams?.streamOf ?? [], streams.count),
    },
    graphs: graphs?.stats() ?? null,
    profiler: profiler && { snapshot: profiler.snapshot(), lostSteps: control.lost },
    energy: energy?.stats(tokens) ?? null,
  }
}

function expertsByStream(streamOf: readonly number[], count: number): number[][] {
  const experts = Array.from({ length: count }, (): number[] => [])
  for (const [e, stream] of streamOf.entries()) experts[stream]?.push(e)
  return experts
}
