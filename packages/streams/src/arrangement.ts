/**
 * How tenants share a device, and which way to take. There are several ways to put two kinds of work together (in turns, side by side on
 * streams, on the same SMs, in slices of their own), each right somewhere; which one is right depends on what the tenants' kernels really
 * do to each other, which no model of one of them tells. So the choice is made from short trials of the real thing; choosing is a pure
 * function of what they measured, so that it can be tested and replayed.
 */
import { checkNumber, checkOptions, describe } from '@nexus/native'

/** The ways. `slices`: disjoint SMs held by the hardware; `grid-cap`: persistent kernels that keep to a number of blocks (advisory). */
export type ArrangementKind = 'alternating' | 'streams' | 'priorities' | 'co-resident' | 'slices' | 'grid-cap'

export interface Arrangement {
  /** For people and results, unique among the candidates. */
  readonly name: string
  readonly kind: ArrangementKind
  /** SMs by tenant, in their order; `null` where none are set apart. */
  readonly sms: readonly number[] | null
  /**
   * Bytes that each tenant's kernels have under way at most, in their order; `null` for one without a limit (`readAheadBytes` of a stream).
   * @default none has a limit
   */
  readonly readAheadBytes?: readonly (number | null)[]
}

/** What a trial saw of one tenant. */
export interface TenantTrial {
  readonly name: string
  /** Median and 99th percentile of the time between two completed steps, in microseconds. */
  readonly p50Us: number
  readonly p99Us: number
  /** Steps a second relative to having the device alone, 0 to about 1. */
  readonly relativeThroughput: number
}

export interface ArrangementTrial {
  readonly arrangement: Arrangement
  readonly tenants: readonly TenantTrial[]
}

export interface ChooseOptions {
  /** Most that a tenant's p99 may be, in microseconds, by the tenant's name. @default none has a bound */
  readonly p99BoundUs?: Readonly<Record<string, number>>
  /** The one in use: it stays unless another is better by `hysteresis`. @default null */
  readonly current?: string | null
  /** Part by which another has to be better than the current one, 0 to 1. @default 0.02 */
  readonly hysteresis?: number
}

export interface ArrangementChoice {
  readonly chosen: Arrangement
  /** Why, in words and numbers. */
  readonly reason: string
  /** False when no candidate keeps all bounds: then the one that misses by least was taken. */
  readonly boundsKept: boolean
  /** By candidate: the sum of the tenants' relative throughputs, and by how much the worst bound is missed (1 or less: kept). */
  readonly scores: readonly { readonly name: string; readonly throughput: number; readonly worstBound: number }[]
}

function score(trial: ArrangementTrial, bounds: Readonly<Record<string, number>>) {
  let throughput = 0
  let worstBound = 0
  for (const { name, p99Us, relativeThroughput } of trial.tenants) {
    throughput += relativeThroughput
    const bound = bounds[name]
    if (bound !== undefined) worstBound = Math.max(worstBound, p99Us / bound)
  }
  return { name: trial.arrangement.name, throughput, worstBound }
}

/**
 * The candidate with the greatest sum of relative throughputs among those that keep every bound.
 * @throws TypeError or RangeError naming the argument: no trial, a bound for a tenant that no trial has, a figure that is none
 */
export function chooseArrangement(trials: readonly ArrangementTrial[], options: ChooseOptions = {}): ArrangementChoice {
  checkOptions('options', options, ['p99BoundUs', 'current', 'hysteresis'])
  const { p99BoundUs: bounds = {}, current = null, hysteresis = 0.02 } = options
  checkNumber('options.hysteresis', hysteresis, 0, 1)
  if (!Array.isArray(trials) || trials.length === 0) {
    throw new RangeError(`trials: expected at least one, got ${describe(trials)}`)
  }
  const tenants = new Set(trials[0]?.tenants.map(({ name }: TenantTrial) => name))
  for (const [name, bound] of Object.entries(bounds)) {
    if (!tenants.has(name)) throw new RangeError(`options.p99BoundUs: there is no tenant ${describe(name)}`)
    checkNumber(`options.p99BoundUs.${name}`, bound, 0)
  }
  for (const [i, trial] of trials.entries()) {
    for (const tenant of trial.tenants) {
      checkNumber(`trials[${i}]: p99Us of ${tenant.name}`, tenant.p99Us, 0)
      checkNumber(`trials[${i}]: relativeThroughput of ${tenant.name}`, tenant.relativeThroughput, 0)
    }
  }
  const scores = trials.map((trial) => score(trial, bounds))
  const kept = scores.flatMap(({ worstBound }, i) => (worstBound <= 1 ? [i] : []))
  const better = (a: number, b: number) => (scores[b]?.throughput ?? 0) > (scores[a]?.throughput ?? 0)
  if (kept.length === 0) {
    let least = 0
    for (const [i, { worstBound }] of scores.entries()) if (worstBound < (scores[least]?.worstBound ?? 0)) least = i
    return made(trials, scores, least, false, 'no candidate keeps the bounds; this one misses by least')
  }
  let best = kept[0] ?? 0
  for (const i of kept) if (better(best, i)) best = i
  const now = kept.find((i) => scores[i]?.name === current)
  if (now !== undefined && now !== best) {
    const gain = (scores[best]?.throughput ?? 0) / (scores[now]?.throughput ?? 1) - 1
    if (gain < hysteresis) {
      const other = `${scores[best]?.name} is only ${(gain * 100).toFixed(1)} % better`
      return made(trials, scores, now, true, `kept: ${other}`)
    }
  }
  const refused = scores.length - kept.length
  const why = refused > 0 ? `the most work of the ${kept.length} that keep the bounds` : 'the most work'
  return made(trials, scores, best, true, why)
}

function made(
  trials: readonly ArrangementTrial[],
  scores: ArrangementChoice['scores'],
  at: number,
  boundsKept: boolean,
  why: string,
): ArrangementChoice {
  const trial = trials[at]
  const found = scores[at]
  if (!trial || !found) throw new RangeError(`trials[${at}]: missing`)
  const figures = trial.tenants
    .map(({ name, p99Us, relativeThroughput: r }) => `${name} p99 ${p99Us.toFixed(0)} us, ${(r * 100).toFixed(0)} %`)
    .join('; ')
  return {
    chosen: trial.arrangement,
    reason: `${trial.arrangement.name}: ${why} (${figures}; together ${found.throughput.toFixed(3)})`,
    boundsKept,
    scores,
  }
}
