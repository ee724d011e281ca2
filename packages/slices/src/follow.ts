/**
 * What a manager's state leads to, step by step: what the policy is shown, and what is remembered of it. Plain loops over the experts: deciding and
 * switching are to cost microseconds, and iterators over hundreds of experts would be most of it.
 */
import type { ProfilerSnapshot } from '@nexus/profiler'
import type { Gated } from './gate.js'
import type { Enforcement, Layout, Plan } from './plan.js'
import type { CurrentPlacement, PolicySnapshot } from './policy.js'
import type { Reservation } from './reservations.js'

/** All that a plan follows from, beside what the manager was made with. */
export interface State {
  readonly reserved: readonly Reservation[]
  /** Reserved slice of each expert that has one. */
  readonly pinned: ReadonlyMap<number, string>
  /** What the policy was last followed in, and for which experts. */
  readonly current: CurrentPlacement | null
  readonly pool: readonly number[]
  readonly profile: ProfilerSnapshot | null
}

/** The part of a policy's snapshot that comes from the profile, for the experts of the pool. */
export function known(
  profile: ProfilerSnapshot | null,
  pool: readonly number[],
): Pick<PolicySnapshot, 'step' | 'load' | 'temperatures' | 'forecast'> {
  const experts = pool.length
  const steps = Math.max(1, profile?.windowSteps ?? 1)
  if (blanks.loads.length !== experts) blanks = blanksOf(experts)
  const load = blanks.loads.slice()
  const temperatures = blanks.temperatures.slice()
  const of = profile?.experts ?? []
  for (let i = 0; i < experts; i++) {
    const expert = of[pool[i] ?? 0]
    load[i] = (expert?.count ?? 0) / steps
    temperatures[i] = expert?.temperature ?? 'unknown'
  }
  const step = profile?.steps ?? 0
  if (!profile?.forecast) return { step, load, temperatures, forecast: null }
  const expected = profile.forecast.counts
  // All experts are in the pool as a rule, which is then their numbers.
  const all = experts === profile.numExperts && experts === expected.length
  const counts = all ? expected.slice() : blanks.loads.slice()
  if (!all) for (let i = 0; i < experts; i++) counts[i] = expected[pool[i] ?? 0] ?? 0
  return { step, load, temperatures, forecast: { ...profile.forecast, counts } }
}

type Temperatures = PolicySnapshot['temperatures'][number][]

/**
 * What lists of so many experts begin as. A copy has no holes and, with a fraction in it, doubles for elements from the start: written and read in
 * less than half the time of an array that was made by its length.
 */
const blanksOf = (experts: number): { readonly loads: number[]; readonly temperatures: Temperatures } => ({
  loads: [...new Float64Array(experts).fill(0.5)],
  temperatures: Array.from(new Float64Array(experts), () => 'unknown' as const),
})
let blanks = blanksOf(0)

/** Whether two lists have the same numbers. */
export function sameNumbers(a: readonly number[], b: readonly number[]): boolean {
  if (a === b) return true
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

/** Experts that are in another slice, by name, than before. */
export function migrations(before: Plan, plan: Plan): number {
  const from = before.sliceOf
  const to = plan.sliceOf
  if (from === to) return 0
  let count = 0
  // Who moves is a toss-up from expert to expert: no branch.
  if (sameNames(before.slices, plan.slices)) {
    for (let e = 0; e < to.length; e++) count += Number(from[e] !== to[e])
    return count
  }
  // Slices by number: where a slice of before is now, -1 for one that is gone.
  const now = before.slices.map(({ name }) => plan.slices.findIndex((each) => each.name === name))
  for (let e = 0; e < to.length; e++) count += Number(now[from[e] ?? 0] !== to[e])
  return count
}

type Named = { readonly name: string }

function sameNames(a: readonly Named[], b: readonly Named[]): boolean {
  if (a.length !== b.length) return false
  for (let s = 0; s < a.length; s++) if (a[s]?.name !== b[s]?.name) return false
  return true
}

/** What a state has led to. */
export interface Followed {
  readonly from: State
  readonly layout: Layout
  readonly enforcements: readonly Enforcement[]
  readonly plan: Plan
  readonly keptBecause: Gated['keptBecause']
  readonly pool: readonly number[]
  readonly current: CurrentPlacement | null
}

/** Sizes that reserved slices go back and forth between are few. */
const most = 8

/**
 * What the last states led to. A policy is a pure function and a state plain data, so the same state leads to the same plan: a reserved slice that
 * goes back to a size that it had need not have all experts placed again. It holds as long as the profile does.
 */
export class FollowedStates {
  #list: Followed[] = []

  find(state: State): Followed | null {
    for (const each of this.#list) if (sameState(each.from, state)) return each
    return null
  }

  /** @returns what is remembered: with the very placement that another state led to, if it is the same, for that is how states are told apart */
  add(followed: Followed): Followed {
    const { current } = followed
    const as = this.#list.find((each) => samePlacement(each.current, current))
    const own = as ? { ...followed, current: as.current } : followed
    if (this.#list.length >= most) this.#list.shift()
    this.#list.push(own)
    return own
  }

  clear(): void {
    if (this.#list.length > 0) this.#list = []
  }
}

function samePlacement(a: CurrentPlacement | null, b: CurrentPlacement | null): boolean {
  if (a === null || b === null) return a === b
  return a.sinceStep === b.sinceStep && sameNumbers(a.sms, b.sms) && sameNumbers(a.sliceOf, b.sliceOf)
}

/** All but the reservations is kept as it is from one state to the next, so that identity says it. */
function sameState(a: State, b: State): boolean {
  if (a.profile !== b.profile || a.current !== b.current || a.pool !== b.pool || a.pinned !== b.pinned) return false
  if (a.reserved.length !== b.reserved.length) return false
  for (let i = 0; i < a.reserved.length; i++) {
    const x = a.reserved[i]
    const y = b.reserved[i]
    if (x === y) continue
    if (x?.name !== y?.name || x?.sms !== y?.sms || x?.requestedSms !== y?.requestedSms) return false
    if (x?.l2Share !== y?.l2Share || x?.bandwidthCap !== y?.bandwidthCap || x?.priority !== y?.priority) return false
  }
  return true
}
