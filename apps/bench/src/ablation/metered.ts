/** A run of some seconds with what the device's meters say of it; what cannot be known is `null`, with the reason. */
import type { EnergyMonitor, Measured } from '@nexus/core'
import type { LoopTimes } from './torch-loop.js'

export type Run = () => Promise<LoopTimes>

/** Shares of the device are from 0 to 1. */
export interface Metered {
  readonly joulesPerToken: number | null
  readonly watts: number | null
  /** SMs that had work, how full they were, and how busy tensor cores and memory, by the chip's counters. */
  readonly smActivity: number | null
  readonly smOccupancy: number | null
  readonly tensorActivity: number | null
  readonly dramActivity: number | null
  /** Share of time in which memory was read or written. */
  readonly memoryUtilisation: number | null
  /** Why a figure is `null`. */
  readonly reasons: Readonly<Record<string, string>>
}

const counters = [
  'smActivity',
  'smOccupancy',
  'tensorActivity',
  'dramActivity',
  'memoryUtilisation',
] as const satisfies readonly (keyof Metered & Measured)[]

export async function meteredRun(
  monitor: EnergyMonitor,
  run: Run,
  tokens: number,
): Promise<{ readonly metered: Metered; readonly times: LoopTimes }> {
  const seen = await monitor.measure(run)
  const times = seen.result
  const reasons: Record<string, string> = {}
  const known = seen.joules !== null
  if (!known) reasons.joulesPerToken = seen.reason ?? 'no reason was given'
  for (const figure of counters) {
    if (seen[figure] === null) reasons[figure] = seen.reasons[figure] ?? 'no reason was given'
  }
  const { smActivity, smOccupancy, tensorActivity, dramActivity, memoryUtilisation } = seen
  return {
    times,
    metered: {
      joulesPerToken: seen.joules === null ? null : seen.joules / (times.steps * tokens),
      watts: seen.meanWatts,
      smActivity,
      smOccupancy,
      tensorActivity,
      dramActivity,
      memoryUtilisation,
      reasons,
    },
  }
}
