/** Policies × traces over seeds: means with 95 % confidence intervals, paired by seed. */
import type { AllocationPolicy } from '../policy.js'
import { type SimulateOptions, type SimulationResult, simulateAll } from './simulate.js'
import { syntheticTrace, type TraceKind, type TraceOptions } from './traces.js'

/** A mean over seeds, with the half width of its 95 % confidence interval (Student's t). */
export interface Estimate {
  readonly mean: number
  /** `null` with fewer than two values. */
  readonly halfWidth: number | null
}

/** One cell of the table. */
export interface Comparison {
  readonly trace: TraceKind
  readonly policy: string
  /** makespan / oracle - 1. */
  readonly regret: Estimate
  /** Changes of sizes per 1000 steps. */
  readonly switches: Estimate
  /** SMs that change slices per 1000 steps. */
  readonly movedSms: Estimate
  /** Experts that change slices per 1000 steps. */
  readonly migrations: Estimate
  /** By seed, in the order of the seeds. */
  readonly makespansUs: readonly number[]
}

/** Options of {@link compare}. */
export interface CompareOptions {
  readonly policies: readonly AllocationPolicy[]
  readonly traces: readonly TraceKind[]
  readonly seeds: readonly number[]
  /** Options of every trace. */
  readonly trace?: Omit<TraceOptions, 'kind' | 'seed'>
  /** Options of every simulation. */
  readonly simulate?: SimulateOptions
}

// 97.5 % quantile of Student's t for 1 to 30 degrees of freedom.
const t975 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
]

/** Mean and 95 % confidence interval of independent values. */
export function estimate(values: readonly number[]): Estimate {
  const n = values.length
  const mean = values.reduce((total, x) => total + x, 0) / n
  if (n < 2) return { mean, halfWidth: null }
  const variance = values.reduce((total, x) => total + (x - mean) ** 2, 0) / (n - 1)
  return { mean, halfWidth: (t975[n - 2] ?? 1.96) * Math.sqrt(variance / n) }
}

/**
 * The ratio of two policies' makespans on the same trace, paired by seed.
 * @throws RangeError when the comparisons are not of as many seeds
 */
export function ratio(of: Comparison, to: Comparison): Estimate {
  if (of.makespansUs.length !== to.makespansUs.length) {
    throw new RangeError(`to: expected ${of.makespansUs.length} seeds, got ${to.makespansUs.length}`)
  }
  return estimate(of.makespansUs.map((us, i) => us / (to.makespansUs[i] ?? Number.NaN)))
}

/** Runs every policy on every kind of trace with every seed. */
export function compare(options: CompareOptions): Comparison[] {
  return options.traces.flatMap((kind) => {
    const runs = options.seeds.map((seed) =>
      simulateAll(options.policies, syntheticTrace({ ...options.trace, kind, seed }), options.simulate),
    )
    return options.policies.map((policy, p): Comparison => {
      const results = runs.flatMap((run): SimulationResult[] => run.slice(p, p + 1))
      const perThousand = (value: (result: SimulationResult) => number) =>
        estimate(results.map((result) => (1000 * value(result)) / Math.max(1, result.steps)))
      return {
        trace: kind,
        policy: policy.name,
        regret: estimate(results.map((result) => result.regret ?? Number.NaN)),
        switches: perThousand((result) => result.switches),
        movedSms: perThousand((result) => result.movedSms),
        migrations: perThousand((result) => result.migrations),
        makespansUs: results.map((result) => result.makespanUs),
      }
    })
  })
}
