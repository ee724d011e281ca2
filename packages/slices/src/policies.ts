/**
 * The built-in policies. All arrange by the same arithmetic (`arrange`), so that what differs is what they believe and when they move:
 *
 *     static        the load it first saw; never moves
 *     dynamic       what the slices did: a portion of SMs goes from the idlest slice to the busiest
 *     proportional  the last window; moves whenever that says so
 *     adaptive      the forecast; moves when the predicted gain is worth the change
 */
import { checkNumber, checkOneOf, checkOptions } from '@nexus/native'
import { arrange, arrangerOf, sliceCount } from './arrange.js'
import type { Placement } from './cost.js'
import { frugal } from './frugal.js'
import { givesAway } from './guard.js'
import type { AllocationPolicy, CurrentPlacement, Decision, PolicySnapshot } from './policy.js'
import { checkPower, type PowerModel } from './power.js'
import { predictStep } from './predict.js'

/** The current placement, if it can go on as it is: same SMs, same experts, no more slices than allowed. */
function usable({ current, constraints, load }: PolicySnapshot): CurrentPlacement | null {
  if (current === null || current.sliceOf.length !== load.length) return null
  if (current.sms.length !== sliceCount(constraints, load.length)) return null
  return current.sms.reduce((total, n) => total + n, 0) === constraints.sms ? current : null
}

const decision = ({ sms, sliceOf }: Placement, reason: string): Decision => ({
  sms: sms.slice(),
  sliceOf: sliceOf.slice(),
  reason,
})

/** The same of a placement that was made for it, and that nobody else has. */
const made = ({ sms, sliceOf }: Placement, reason: string): Decision => ({ sms, sliceOf, reason })

/**
 * Arranges once, for the load that the first decision sees, and keeps that for good (another number of experts or SMs is a
 * new start). What every other policy has to beat, and right when the load does not change.
 */
function fixed(): AllocationPolicy {
  return givesAway({
    name: 'static',
    decide(snapshot) {
      const current = usable(snapshot)
      if (current) return decision(current, 'arranged once, kept')
      return decision(arrange(snapshot.load, snapshot.constraints, snapshot.cost), 'arranged for the first load seen')
    },
  })
}

/** Options of `policies.dynamic`. */
export interface DynamicOptions {
  /**
   * How much sooner the step has to end, as a part of it, for a portion to move, 0 to 1.
   * @default 0.05
   */
  readonly leastGain?: number
}

/**
 * Feedback on what was measured, without any model of the work: if the busiest slice would be relieved by more than the idlest one
 * is burdened, one portion of SMs moves (times taken as inversely proportional to SMs). Experts stay where they are. What was not measured is
 * predicted from the last window.
 */
function dynamic(options?: DynamicOptions): AllocationPolicy {
  checkOptions('options', options, ['leastGain'])
  const leastGain = checkNumber('options.leastGain', options?.leastGain ?? 0.05, 0, 1)
  return givesAway({
    name: 'dynamic',
    decide(snapshot) {
      const { constraints, utilization, cost, load } = snapshot
      const current = usable(snapshot)
      if (!current) return decision(arrange(load, constraints, cost), 'arranged for the first load seen')
      const busy = utilization ?? predictStep(cost, load, current).sliceUs
      const moved = movePortion(current.sms, busy, constraints, leastGain)
      if (moved === null) return decision(current, 'no slice is much busier than the others')
      return decision(
        { sms: moved.sms, sliceOf: current.sliceOf },
        `${constraints.granularity} SMs from slice ${moved.from} to slice ${moved.to}, which is the busiest`,
      )
    },
  })
}

function movePortion(
  sms: readonly number[],
  busy: readonly number[],
  { granularity, minSms }: PolicySnapshot['constraints'],
  leastGain: number,
) {
  let to = 0
  for (let s = 1; s < sms.length; s++) if ((busy[s] ?? 0) > (busy[to] ?? 0)) to = s
  const time = (s: number, change: number) => ((busy[s] ?? 0) * (sms[s] ?? 0)) / ((sms[s] ?? 0) + change)
  let from = -1
  let least = (busy[to] ?? 0) * (1 - leastGain)
  // The idlest first: of donors that do equally well, it gives.
  const donors = sms.map((_, s) => s).sort((a, b) => (busy[a] ?? 0) - (busy[b] ?? 0) || a - b)
  for (const s of donors) {
    if (s === to || (sms[s] ?? 0) - granularity < minSms) continue
    let ends = Math.max(time(s, -granularity), time(to, granularity))
    for (let o = 0; o < sms.length; o++) if (o !== s && o !== to) ends = Math.max(ends, busy[o] ?? 0)
    if (ends < least) {
      least = ends
      from = s
    }
  }
  if (from < 0) return null
  const change = (n: number, s: number) => n + (s === to ? granularity : s === from ? -granularity : 0)
  return { sms: sms.map(change), from, to }
}

/**
 * SMs and experts in proportion to the work of the last window: arranged anew at every decision, so that all slices would have ended
 * together. Follows any change, half a window late, and never looks ahead.
 */
function proportional(): AllocationPolicy {
  return givesAway({
    name: 'proportional',
    decide({ load, constraints, cost }) {
      return made(arrange(load, constraints, cost), 'in proportion to the work of the last window')
    },
  })
}

/** Options of `policies.adaptive`. */
export interface AdaptiveOptions {
  /**
   * How much sooner the step has to end (or how much less energy it has to take), as a part of it and beyond the price of the change, for
   * anything to move, 0 to 1.
   * @default 0.005
   */
  readonly leastGain?: number
  /**
   * What is least: the time of the step, or its energy. Without a power model or a cost model nothing is known of the energy, and the
   * time decides; the reason says so.
   * @default 'time'
   */
  readonly objective?: 'time' | 'joules'
  /**
   * With the objective 'joules': microseconds that a step may take by the cost model, more than 0. When no layout is within them, the soonest is taken.
   * @default null (no bound)
   */
  readonly latencyBoundUs?: number | null
  /**
   * With the objective 'joules': what time, SMs, bytes and operations cost (`powerModels` or `fitPower` of @nexus/energy).
   * @default null (not known)
   */
  readonly power?: PowerModel | null
}

/**
 * Looks ahead. It believes the forecast where the backtest says that it beats the last window (else the last window), and compares by
 * the cost model: to stay; to keep the sizes and move experts, which is free; to change sizes too, whose price is
 * spread over the steps that they then have to stay. It takes the cheapest, and stays when the gain is small. Cheapest is the least time or, with the
 * objective 'joules', the least predicted energy of those that are predicted to end within the bound.
 */
function adaptive(options?: AdaptiveOptions): AllocationPolicy {
  checkOptions('options', options, ['leastGain', 'objective', 'latencyBoundUs', 'power'])
  const leastGain = checkNumber('options.leastGain', options?.leastGain ?? 0.005, 0, 1)
  const objective = checkOneOf('options.objective', options?.objective ?? 'time', ['time', 'joules'])
  const bound = options?.latencyBoundUs ?? null
  if (bound !== null) checkNumber('options.latencyBoundUs', bound, Number.MIN_VALUE)
  const power = options?.power ? checkPower('options.power', options.power) : null
  if (objective === 'time' && (bound !== null || power !== null)) {
    const name = bound === null ? 'power' : 'latencyBoundUs'
    throw new TypeError(`options.${name}: is for the objective 'joules' only; the objective is 'time'`)
  }
  return givesAway({
    name: 'adaptive',
    decide(snapshot) {
      const { forecast, cost } = snapshot
      const trusted = forecast !== null && (forecast.score ?? 1) < 1 && forecast.counts.length === snapshot.load.length
      const load = trusted ? forecast.counts : snapshot.load
      const basis = trusted
        ? `the ${forecast.method} forecast (${(forecast.score ?? 1).toFixed(2)} of the error of the last window)`
        : 'the last window'
      if (objective === 'time') return soonest(snapshot, load, basis, leastGain)
      if (power === null || cost === null) {
        const unknown = power === null ? 'the power is not known' : 'there is no cost model'
        const { reason, ...placement } = soonest(snapshot, load, basis, leastGain)
        return decision(placement, `by time, for ${unknown}: ${reason}`)
      }
      const boundUs = bound ?? Number.POSITIVE_INFINITY
      const choice = frugal(snapshot, usable(snapshot), load, basis, { power, cost, boundUs, leastGain })
      return decision(choice.placement, choice.reason)
    },
  })
}

/** The choice of `adaptive` by time. */
function soonest(snapshot: PolicySnapshot, load: readonly number[], basis: string, leastGain: number): Decision {
  const { constraints, cost } = snapshot
  const current = usable(snapshot)
  if (!current) return made(arrange(load, constraints, cost), `arranged for ${basis}`)
  const arranger = arrangerOf(load, constraints, cost)
  const stay = arranger.predict(current).stepUs
  const kept = `kept: no change is worth it by ${basis}`
  // What no change can be sooner than is known beforehand, and often enough it is reached: the memory is busy all the time.
  const possible = arranger.leastUs()
  if (possible >= stay * (1 - leastGain)) return decision(current, kept)
  let best = arranger.keeping(current.sms)
  let least = best.predicted.stepUs
  let what = 'experts moved between slices'
  // The price counts only where times are real microseconds.
  const price = cost === null ? 0 : constraints.switchUs / Math.max(1, constraints.dwellSteps)
  if (snapshot.step - current.sinceStep >= constraints.dwellSteps && possible + price < least) {
    const resized = arranger.arrange()
    if (resized.predicted.stepUs + price < least) {
      best = resized
      least = resized.predicted.stepUs + price
      what = 'slices resized'
    }
  }
  if (least >= stay * (1 - leastGain)) return decision(current, kept)
  return made(arranger.placement(best), `${what} for ${basis}: ${((1 - least / stay) * 100).toFixed(1)} % sooner`)
}

/** The built-in policies, as functions that make them. */
export const policies = { static: fixed, dynamic, proportional, adaptive } as const
