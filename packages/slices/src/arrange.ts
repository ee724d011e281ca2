/**
 * Experts into slices and SMs to slices so that the slowest slice ends as soon as can be: the arithmetic that the built-in policies
 * share, and that one's own may use. They differ in the load that they believe in and in when they move.
 *
 * Experts are ranked by load and the ranking is cut: the first slice has the hottest, the last one queues the cold. Sizes and
 * cuts depend on each other; two rounds settle them: sizes for given cuts by giving each portion of SMs to the slice
 * that would end last (optimal for times that fall with SMs), cuts for given sizes by bisection over the ending time.
 */
import type { CostModel, Placement, StepPrediction } from './cost.js'
import type { Constraints } from './policy.js'
import { predictStep, Workload } from './predict.js'
import { Ranking } from './ranking.js'

/** A placement and the step time that the cost model gives it under the load it was made for. */
export interface Arrangement extends Placement {
  readonly predictedUs: number
}

/** Sizes and where the ranking is cut; a placement only when somebody wants it, because most are compared and dropped. */
export interface Cut {
  readonly sms: readonly number[]
  readonly cuts: readonly number[]
  readonly predicted: StepPrediction
}

/** Slices that can be had: at most as asked, one for each expert, and each with the least SMs. At least 1. */
export function sliceCount(constraints: Constraints, experts: number): number {
  const units = Math.floor(constraints.sms / constraints.granularity)
  const least = Math.max(1, Math.ceil(constraints.minSms / constraints.granularity))
  return Math.max(1, Math.min(constraints.slices, experts, Math.floor(units / least)))
}

/**
 * The arrangement for a load.
 * @param load - assignments by expert; all 0 is taken for an even load
 */
export function arrange(load: ArrayLike<number>, constraints: Constraints, cost: CostModel | null): Arrangement {
  const arranger = arrangerOf(load, constraints, cost)
  const cut = arranger.arrange()
  return { ...arranger.placement(cut), predictedUs: cut.predicted.stepUs }
}

/** Arrangements of one load; ranking the experts is half of the work and done once. */
export class Arranger {
  readonly #work = new Workload()
  /** What is ranked when there is no load at all. */
  readonly #even = new Workload()
  readonly #ranking = new Ranking()
  #hasRanks = false
  #constraints: Constraints | null = null
  #load: ArrayLike<number> | null = null
  /** What was cut for this load so far: sizes often come out the same twice. */
  #made: Cut[] = []
  /** Slice by expert: of the cut that was laid out last, and of the placement that was predicted last. */
  #sliceOf = new Int32Array(0)
  #stays = new Int32Array(0)
  #laid: Cut | null = null
  #stay: { readonly sms: readonly number[]; readonly predicted: StepPrediction } | null = null

  /** Takes a load; the arrangements of the one before can no longer be asked for. */
  take(load: ArrayLike<number>, constraints: Constraints, cost: CostModel | null): void {
    this.#constraints = constraints
    this.#load = load
    this.#made = []
    this.#work.fill(load, load.length, cost, constraints.sms, sliceCount(constraints, load.length))
    this.#laid = null
    this.#stay = null
    if (this.#sliceOf.length < load.length) {
      this.#sliceOf = new Int32Array(load.length)
      this.#stays = new Int32Array(load.length)
    }
    this.#hasRanks = false
  }

  /** The ranking of the load: made when it is first asked for, since who stays may need none. */
  #ranked(): Ranking {
    if (this.#hasRanks) return this.#ranking
    this.#hasRanks = true
    const { experts, cost } = this.#work
    if (this.#work.largest > nothing) this.#ranking.rank(this.#work)
    else {
      const constraints = this.#bounds
      const even = new Float64Array(experts).fill(1)
      this.#even.fill(even, experts, cost, constraints.sms, sliceCount(constraints, experts))
      this.#ranking.rank(this.#even)
    }
    return this.#ranking
  }

  get #bounds(): Constraints {
    if (this.#constraints === null) throw new Error('no load was taken')
    return this.#constraints
  }

  /** Sizes and experts. */
  arrange(): Cut {
    const constraints = this.#bounds
    const { sms } = constraints
    const slices = sliceCount(constraints, this.#work.experts)
    if (slices === 1) return this.#cut([sms], [0, this.#work.experts])
    const ranking = this.#ranked()
    const first = ranking.sizes(ranking.evenCuts(slices, sms), constraints)
    const cuts = this.#madeFor(first)?.cuts ?? ranking.cuts(first)
    const second = ranking.sizes(cuts, constraints)
    return this.#madeFor(second) ?? this.#cut(second, same(first, second) ? cuts : ranking.cuts(second))
  }

  /** No step with as many slices as can be had is predicted to end before this, however it is laid out: microseconds. */
  leastUs(): number {
    const constraints = this.#bounds
    return this.#work.leastUs(constraints.sms, sliceCount(constraints, this.#work.experts))
  }

  /** Experts only, for sizes that stay; no more slices than experts. */
  keeping(sms: readonly number[]): Cut {
    return this.#madeFor(sms) ?? this.#cut(sms, this.#ranked().cuts(sms))
  }

  /**
   * As many cold experts as end within `limitUs` queued in one slice of `sms` SMs, the hot ones in a slice with nearly all the others: for work
   * that is bound by memory, the fewest SMs that wait for it. `null` where there is no room for it.
   */
  queued(sms: number, limitUs: number): Cut | null {
    const { sms: all, granularity, minSms } = this.#bounds
    const { experts } = this.#work
    const least = Math.max(1, Math.ceil(minSms / granularity)) * granularity
    const slices = sliceCount(this.#bounds, experts)
    const hot = all - sms - (slices - 2) * least
    if (slices < 2 || sms < least || hot < least || sms % granularity !== 0) return null
    const first = this.#ranked().tail(sms, limitUs, slices - 1)
    const sizes = [hot]
    const cuts = [0]
    // Those between have one expert each.
    for (let s = 1; s < slices; s++) {
      sizes.push(s === slices - 1 ? sms : least)
      cuts.push(first - (slices - 1 - s))
    }
    cuts.push(experts)
    // Not among what was made: for the same sizes there are better cuts.
    return this.#predicted(sizes, cuts)
  }

  /** A cut of this load as a placement. */
  placement(cut: Cut): Placement {
    if (cut !== this.#laid) {
      this.#lay(cut.cuts)
      this.#laid = cut
    }
    const sliceOf = this.#sliceOf
    const { experts } = this.#work
    const own = new Array<number>(experts)
    for (let e = 0; e < experts; e++) own[e] = sliceOf[e] ?? 0
    return { sms: cut.sms.slice(), sliceOf: own }
  }

  /** The step when this load is laid out so; as many experts as it has. */
  predict({ sms, sliceOf }: Placement): StepPrediction {
    const stays = this.#stays
    const work = this.#work
    const { experts } = work
    for (let e = 0; e < experts; e++) stays[e] = sliceOf[e] ?? 0
    const predicted = work.predict(sms, stays)
    this.#stay = { sms: sms.slice(), predicted }
    return predicted
  }

  /**
   * What was predicted of a placement, if it is one of the last two that were asked about. The load is the very one that was taken; placements may
   * have been copied or changed since, and are looked at expert by expert.
   */
  predicted(cost: CostModel | null, load: ArrayLike<number>, { sms, sliceOf }: Placement): StepPrediction | null {
    if (load !== this.#load || cost !== this.#work.cost || sliceOf.length !== load.length) return null
    const laid = this.#laid
    const stay = this.#stay
    if (laid && same(laid.sms, sms) && begins(this.#sliceOf, sliceOf)) return laid.predicted
    return stay && same(stay.sms, sms) && begins(this.#stays, sliceOf) ? stay.predicted : null
  }

  #madeFor(sms: readonly number[]): Cut | null {
    for (const made of this.#made) if (same(made.sms, sms)) return made
    return null
  }

  #cut(sms: readonly number[], cuts: readonly number[]): Cut {
    const made = this.#predicted(sms, cuts)
    this.#made.push(made)
    return made
  }

  #predicted(sms: readonly number[], cuts: readonly number[]): Cut {
    this.#lay(cuts)
    const cut = { sms, cuts, predicted: this.#work.predict(sms, this.#sliceOf) }
    this.#laid = cut
    return cut
  }

  #lay(cuts: readonly number[]): void {
    const { order } = this.#ranked()
    const sliceOf = this.#sliceOf
    const last = cuts.length - 2
    // Most experts are in the last slice, the coldest: all are put there, and then the others elsewhere.
    sliceOf.fill(last, 0, this.#work.experts)
    for (let s = 0; s < last; s++) {
      const to = cuts[s + 1] ?? 0
      for (let i = cuts[s] ?? 0; i < to; i++) sliceOf[order[i] ?? 0] = s
    }
  }
}

function same(a: readonly number[], b: readonly number[]): boolean {
  if (a.length !== b.length) return false
  for (let s = 0; s < a.length; s++) if (a[s] !== b[s]) return false
  return true
}

/** Less than any count or mean of counts that there can be: with it, times and their reciprocals leave the range of numbers. */
const nothing = 1e-100

/** Whether an array begins with these numbers. */
function begins(own: Int32Array, values: readonly number[]): boolean {
  for (let i = 0; i < values.length; i++) if (own[i] !== values[i]) return false
  return true
}

const shared = new Arranger()

/**
 * An arranger for a load: always the same one, so that a decision does not begin with the making of arrays. It is good until the next call, and
 * decisions do not nest: a policy has nobody else's code to call. @internal
 */
export function arrangerOf(load: ArrayLike<number>, constraints: Constraints, cost: CostModel | null): Arranger {
  shared.take(load, constraints, cost)
  return shared
}

/**
 * Microseconds of a step, as `predictStep` says: without working them out once more where the decision that has just been made has. @internal
 */
export function predictDecided(cost: CostModel, load: readonly number[], placement: Placement): number {
  return (shared.predicted(cost, load, placement) ?? predictStep(cost, load, placement)).stepUs
}
