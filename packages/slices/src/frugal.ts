/**
 * The least joules within a bound on the step's time: the choice among layouts behind `adaptive` with the objective 'joules'. The soonest layout is
 * one candidate, for a device that is done sooner is idle sooner; the others have cold experts, which wait for memory, queue on fewer SMs than
 * would be shared out among them, so that the rest of the chip has nothing to do.
 */
import { arrangerOf, type Cut } from './arrange.js'
import { type CostModel, outsideUs, type Placement } from './cost.js'
import type { CurrentPlacement, PolicySnapshot } from './policy.js'
import { type EnergyPrediction, energyOf, type PowerModel } from './power.js'

interface Candidate extends EnergyPrediction {
  readonly cut: Cut
  /** What it is compared by: with the price of a change. */
  readonly price: number
  readonly what: string
}

export interface FrugalOptions {
  readonly power: PowerModel
  readonly cost: CostModel
  /** Infinity without a bound. */
  readonly boundUs: number
  readonly leastGain: number
}

export interface FrugalChoice {
  readonly placement: Placement
  readonly reason: string
}

/** SMs on which the cold experts are queued, as parts of the device: 48 and 24 of 132; memory saturates at the first. */
const QUEUES = [0.37, 0.19]
/** How much later than the soonest a step may end at most for the sake of energy: beyond, idle power costs more than it saves. */
const PATIENCE = 1.5

const milli = (joules: number) => `${(joules * 1e3).toPrecision(3)} mJ`
const micro = (us: number) => `${us.toPrecision(3)} µs`

/** @param basis where the load comes from, in words */
export function frugal(
  { constraints, step }: PolicySnapshot,
  current: CurrentPlacement | null,
  load: readonly number[],
  basis: string,
  { power, cost, boundUs, leastGain }: FrugalOptions,
): FrugalChoice {
  const arranger = arrangerOf(load, constraints, cost)
  const energy = energyOf(cost, power, load)
  const candidate = (cut: Cut, what: string, changeUs = 0): Candidate => {
    const { stepUs, joules } = energy(cut.sms, cut.predicted)
    return { stepUs, joules, cut, what, price: joules + power.idleWatts * changeUs * 1e-6 }
  }
  const candidates: Candidate[] = []
  if (current !== null) candidates.push(candidate(arranger.keeping(current.sms), 'experts moved between slices'))
  if (current === null || step - current.sinceStep >= constraints.dwellSteps) {
    const changeUs = current === null ? 0 : constraints.switchUs / Math.max(1, constraints.dwellSteps)
    const soonest = arranger.arrange()
    candidates.push(candidate(soonest, 'slices resized', changeUs))
    if ((power.smWatts ?? 0) > 0) {
      const soonestUs = soonest.predicted.stepUs
      const limits = new Set([soonestUs, Math.min(boundUs, PATIENCE * soonestUs)])
      const outside = outsideUs(cost, soonest.sms.length, sum(load))
      for (const part of QUEUES) {
        const queue = Math.round((part * constraints.sms) / constraints.granularity) * constraints.granularity
        for (const limitUs of limits) {
          const cut = arranger.queued(queue, limitUs - outside)
          if (cut) candidates.push(candidate(cut, 'cold experts queued on fewer SMs', changeUs))
        }
      }
    }
  }
  // Within the bound the least energy; when nothing is within it, the least time.
  const better = (a: Candidate, b: Candidate) => {
    const [fits, other] = [a.stepUs <= boundUs, b.stepUs <= boundUs]
    if (fits !== other) return fits
    return fits ? a.price < b.price : a.stepUs < b.stepUs
  }
  const [first, ...rest] = candidates
  // There is always one: without a current placement, the arrangement.
  if (!first) throw new Error('no candidate')
  const best = rest.reduce((a, b) => (better(b, a) ? b : a), first)
  const bound = boundUs === Number.POSITIVE_INFINITY ? '' : `, ${micro(best.stepUs)} of at most ${micro(boundUs)}`
  const late = () => `no layout is predicted within ${micro(boundUs)}, the soonest takes ${micro(best.stepUs)}`
  if (current === null) {
    const reason =
      best.stepUs <= boundUs ? `arranged for the least joules by ${basis}${bound}` : `${late()}, by ${basis}`
    return { placement: arranger.placement(best.cut), reason }
  }
  const stay = energy(current.sms, arranger.predict(current))
  const tooLate = stay.stepUs > boundUs
  if (tooLate && best.stepUs <= boundUs) {
    return {
      placement: arranger.placement(best.cut),
      reason: `${best.what} for ${basis}: back within the bound${bound}`,
    }
  }
  if (tooLate) {
    if (best.stepUs >= stay.stepUs * (1 - leastGain))
      return { placement: current, reason: `kept: ${late()}, by ${basis}` }
    return { placement: arranger.placement(best.cut), reason: `${best.what} for ${basis}: ${late()}` }
  }
  if (best.stepUs > boundUs || best.price >= stay.joules * (1 - leastGain)) {
    return { placement: current, reason: `kept: no change saves enough energy by ${basis}` }
  }
  const saved = `${((1 - best.price / stay.joules) * 100).toFixed(1)} % fewer joules`
  return {
    placement: arranger.placement(best.cut),
    reason: `${best.what} for ${basis}: ${saved} (${milli(best.joules)} a step${bound})`,
  }
}

function sum(values: readonly number[]): number {
  let total = 0
  for (const value of values) total += value
  return total
}
