/** What `nexus-demo top` shows at one moment: plain data, one line of `--json`. `null` is what is not known or not there. */
import type { EnergyStatus, LayerStats, PowerSample, Temperature } from '@nexus/core'

export interface TopExpert {
  readonly expert: number
  /** Share of the window's assignments. */
  readonly share: number
  readonly temperature: Temperature
  /** Name of its slice, and number of its stream; `null` without slices or streams. */
  readonly slice: string | null
  readonly stream: number | null
}

export interface TopSlice {
  readonly name: string
  /** SMs; on the CPU virtual workers. */
  readonly sms: number
  readonly experts: number
  /** Share of the window's assignments. */
  readonly share: number
  readonly enforcement: string
  readonly reason: string
}

export interface TopSnapshot {
  readonly schema: 'nexus-demo/top/1'
  readonly elapsedMs: number
  readonly device: string
  readonly dtype: string
  readonly numExperts: number
  readonly topK: number
  readonly strategy: {
    readonly name: string
    readonly reason: string
    readonly changes: number
    /** What the layer went on after, and the last of it in words. */
    readonly failures: number
    readonly lastFailure: string | null
  }
  /** Of the last interval; `null` before there was one. */
  readonly rate: { readonly stepsPerSecond: number; readonly tokensPerSecond: number } | null
  /** Steps so far, and the device's time for the last measured one. */
  readonly steps: number
  readonly tokens: number
  readonly stepMs: number | null
  readonly experts: {
    /** Steps of the profiler's window. */
    readonly windowSteps: number
    readonly loadImbalance: number | null
    readonly normalizedEntropy: number | null
    readonly drift: number | null
    readonly forecast: string | null
    readonly list: readonly TopExpert[]
  } | null
  readonly slices: {
    /** Whether the strategy runs the experts in them. */
    readonly inUse: boolean
    readonly enforcement: string
    readonly reason: string
    readonly switches: number
    readonly migrations: number
    readonly list: readonly TopSlice[]
  } | null
  readonly streams: {
    readonly inUse: boolean
    readonly assignment: string
    /** Experts of each stream, and its share of the window's assignments. */
    readonly list: readonly { readonly experts: number; readonly share: number }[]
  } | null
  readonly graphs: {
    readonly graphs: number
    readonly bytes: number
    readonly hits: number
    readonly misses: number
    readonly captures: number
    readonly captureMs: number
    readonly evictions: number
    readonly fallbacks: number
    readonly lastFallback: string | null
    readonly paddingWaste: number | null
  } | null
  readonly power: {
    /** Of the whole device, in the last interval. */
    readonly watts: number | null
    /** Where `watts` comes from; `null` where it is `null`. */
    readonly source: 'energy counter' | 'power sample' | null
    /** Why `watts` is `null`. */
    readonly reason: string | null
    /** Over the layer's life. */
    readonly tokensPerJoule: number | null
    /** Share of the time in which a kernel ran. */
    readonly gpuUtilisation: number | null
  }
}

/** The layer at one moment, and what is needed to tell what has changed since. */
export interface Moment {
  readonly timeMs: number
  readonly stats: LayerStats
  /** Newest sample of the monitor; `null` before the first. */
  readonly sample: PowerSample | null
  readonly unknown: EnergyStatus['unknown']
}

/** The view of a moment. `before` is that of the last view. */
export function topSnapshot(of: { startMs: number; topK: number }, now: Moment, before: Moment | null): TopSnapshot {
  const { stats } = now
  const { strategy, profiler, slices, streams, graphs } = stats
  const profile = profiler?.snapshot ?? null
  const share = (e: number): number => profile?.experts[e]?.share ?? 0
  const shareOf = (experts: readonly number[]): number => experts.reduce((sum, e) => sum + share(e), 0)
  const streamOf = new Map(streams?.experts.flatMap((experts, i) => experts.map((e): [number, number] => [e, i])))
  const seconds = before === null ? 0 : (now.timeMs - before.timeMs) / 1000
  return {
    schema: 'nexus-demo/top/1',
    elapsedMs: now.timeMs - of.startMs,
    device: stats.device,
    dtype: stats.dtype,
    numExperts: stats.expertCounts.length,
    topK: of.topK,
    strategy: {
      name: strategy?.name ?? 'fused',
      reason: strategy?.reason ?? 'scheduling is off',
      changes: strategy?.changes ?? 0,
      failures: strategy?.failures ?? 0,
      lastFailure: strategy?.lastFailure?.message ?? null,
    },
    rate:
      before === null || seconds <= 0
        ? null
        : {
            stepsPerSecond: (stats.steps - before.stats.steps) / seconds,
            tokensPerSecond: (stats.tokens - before.stats.tokens) / seconds,
          },
    steps: stats.steps,
    tokens: stats.tokens,
    stepMs: stats.times?.last.totalMs ?? null,
    experts: profile && {
      windowSteps: profile.windowSteps,
      loadImbalance: profile.loadImbalance,
      normalizedEntropy: profile.normalizedEntropy,
      drift: profile.drift,
      forecast: profile.forecast?.method ?? null,
      list: profile.experts.map(({ expert, temperature }) => ({
        expert,
        share: share(expert),
        temperature,
        slice: slices?.plan.slices[slices.plan.sliceOf[expert] ?? -1]?.name ?? null,
        stream: streamOf.get(expert) ?? null,
      })),
    },
    slices: slices && {
      inUse: strategy?.name === 'tiered' || strategy?.name === 'cooperative',
      enforcement: slices.enforcer.mode,
      reason: slices.enforcer.reason,
      switches: slices.manager.switches,
      migrations: slices.manager.migrations,
      list: slices.plan.slices.map(({ name, grantedSms, experts, enforcement, enforcementReason }) => ({
        name,
        sms: grantedSms,
        experts: experts.length,
        share: shareOf(experts),
        enforcement,
        reason: enforcementReason,
      })),
    },
    streams: streams && {
      inUse: strategy?.name === 'streams',
      assignment: streams.assignment,
      list: streams.experts.map((experts) => ({ experts: experts.length, share: shareOf(experts) })),
    },
    graphs: graphs && {
      graphs: graphs.graphs,
      bytes: graphs.bytes,
      hits: graphs.hits,
      misses: graphs.misses,
      captures: graphs.captures,
      captureMs: graphs.captureMs,
      evictions: graphs.evictions,
      fallbacks: Object.values(graphs.fallbacks).reduce((sum, n) => sum + n, 0),
      lastFallback: graphs.lastFallback,
      paddingWaste: graphs.paddingWaste,
    },
    power: powerOf(now, before),
  }
}

/** Ticks of a counter that make a difference worth telling. */
const leastTicks = 3

function powerOf(now: Moment, before: Moment | null): TopSnapshot['power'] {
  const { stats, sample, unknown } = now
  const common = {
    tokensPerJoule: stats.energy?.tokensPerJoule ?? null,
    gpuUtilisation: sample?.gpuUtilisation ?? null,
  }
  if (sample === null) return { ...common, watts: null, source: null, reason: 'there is no sample yet' }
  const last = before?.sample ?? null
  const whole = last !== null && last.resets === sample.resets && sample.ticks - last.ticks >= leastTicks ? last : null
  if (whole !== null && whole.joules !== null && sample.joules !== null && sample.timeMs > whole.timeMs) {
    const watts = (1000 * (sample.joules - whole.joules)) / (sample.timeMs - whole.timeMs)
    return { ...common, watts, source: 'energy counter', reason: null }
  }
  if (sample.watts !== null) return { ...common, watts: sample.watts, source: 'power sample', reason: null }
  const reason = unknown.joules ?? unknown.watts ?? 'the energy counter has not moved often enough yet'
  return { ...common, watts: null, source: null, reason }
}
