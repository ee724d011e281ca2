/**
 * Keeps the slices of one device for the experts of one layer: reserved ones by name, and the rest of the chip shared among the experts
 * by a policy. Plain data in, plans out; what holds the device to a plan is the enforcer it is given. Every change is worked out
 * whole before it is taken over, so that one which fails changes nothing.
 */
import { checkInteger, checkNumber, checkOptions, DisposedError, describe } from '@nexus/native'
import type { ProfilerSnapshot } from '@nexus/profiler'
import { predictDecided } from './arrange.js'
import { budgets } from './budgets.js'
import { checkCost, costOfLoad } from './cost.js'
import { checkDevice, type DeviceDescription } from './device.js'
import { SliceAllocationError } from './errors.js'
import { type Followed, FollowedStates, known, migrations, type State, sameNumbers } from './follow.js'
import { type Gated, gate } from './gate.js'
import { decide } from './guard.js'
import { LayoutCache } from './layout-cache.js'
import { optionKeys, type SliceManagerOptions, type SliceManagerStats } from './manager-options.js'
import { type Layout, layoutOf, type Plan, type SliceBudget, sliceNames } from './plan.js'
import { policies } from './policies.js'
import type { PolicySnapshot } from './policy.js'
import {
  auxSlice,
  granted,
  grownSms,
  type Reservation,
  reservation,
  reserve,
  type SliceRequest,
} from './reservations.js'

/**
 * @example
 * ```ts
 * const manager = new SliceManager({ device: h200, numExperts: 128, cost: gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 }) })
 * manager.allocate({ name: 'aux', sms: 16 })
 * const plan = manager.update(profiler.snapshot())
 * ```
 */
export class SliceManager {
  readonly device: DeviceDescription
  readonly numExperts: number
  readonly #options: Required<Omit<SliceManagerOptions, 'device' | 'numExperts' | 'maxLayouts' | 'aux'>>
  readonly #layouts: LayoutCache
  #state: State
  #pool: { readonly pinned: State['pinned'] | null; readonly experts: readonly number[] } = {
    pinned: null,
    experts: [],
  }
  #plan: Plan
  readonly #followed = new FollowedStates()
  #disposed = false
  #counts = { plans: 0, switches: 0, migrations: 0, evictions: 0, dwell: 0, hysteresis: 0 }

  /**
   * @throws TypeError or RangeError that names the option; SliceAllocationError when the policy or the enforcer fails
   */
  constructor(options: SliceManagerOptions) {
    if (typeof options !== 'object' || options === null) {
      throw new TypeError(`options: expected an object, got ${describe(options)}`)
    }
    checkOptions('options', options, optionKeys)
    this.device = checkDevice('options.device', options.device)
    this.numExperts = checkInteger('options.numExperts', options.numExperts, 0, 65536)
    const policy = options.policy ?? policies.adaptive()
    if (typeof policy?.decide !== 'function') {
      throw new TypeError(`options.policy: expected an AllocationPolicy, got ${describe(policy)}`)
    }
    this.#options = {
      policy,
      slices: checkInteger('options.slices', options.slices ?? 3, 1, 1024),
      cost: checkCost('options.cost', options.cost ?? null),
      dwellSteps: checkInteger('options.dwellSteps', options.dwellSteps ?? 8, 0),
      hysteresisSms: checkInteger('options.hysteresisSms', options.hysteresisSms ?? 0, 0),
      switchUs: checkNumber('options.switchUs', options.switchUs ?? 3, 0),
      enforcer: options.enforcer ?? null,
    }
    this.#layouts = new LayoutCache(
      this.#options.enforcer,
      this.device,
      checkInteger('options.maxLayouts', options.maxLayouts ?? 32, 1),
    )
    this.#state = {
      reserved: this.#firstReserved(options.aux),
      pinned: new Map(),
      current: null,
      pool: [],
      profile: null,
    }
    this.#plan = this.#follow(this.#state)
  }

  /** The plan that holds now. */
  get plan(): Plan {
    return this.#plan
  }

  /** Asks the policy what to do about a new profile, and takes it over within dwell and hysteresis. */
  update(profile: ProfilerSnapshot, options?: { readonly utilization?: readonly number[] | null }): Plan {
    this.#check()
    checkOptions('options', options, ['utilization'])
    if (profile?.numExperts !== this.numExperts) {
      throw new RangeError(`profile.numExperts: expected ${this.numExperts}, got ${describe(profile?.numExperts)}`)
    }
    this.#followed.clear()
    return this.#follow({ ...this.#state, profile }, options?.utilization ?? null)
  }

  /**
   * Reserves a slice by name. The policy's slices have what is left.
   * @returns its budget, and the names of what was evicted for it
   * @throws SliceAllocationError with what was asked and what is free; nothing has changed then
   */
  allocate(request: SliceRequest): { readonly slice: SliceBudget; readonly evicted: readonly string[] } {
    this.#check()
    const wanted = reservation(this.device, request)
    if (this.#state.reserved.some(({ name }) => name === wanted.name)) {
      throw new RangeError(`request.name: there is a slice '${wanted.name}' already; resize or release it`)
    }
    const { pinned } = this.#state
    const poolNeeded = (left: readonly Reservation[]) => {
      const kept = new Set(left.map(({ name }) => name))
      return [...pinned.values()].filter((name) => kept.has(name)).length < this.numExperts
    }
    const mayEvict = request.evict ?? false
    const { set, evicted } = reserve(this.device, this.#state.reserved, wanted, poolNeeded, mayEvict)
    this.#followAgain({ ...this.#state, reserved: set, pinned: without(this.#state.pinned, evicted) })
    this.#counts.evictions += evicted.length
    return { slice: this.slice(wanted.name), evicted }
  }

  /**
   * Gives a reserved slice another size; a bandwidth cap that it had is gone.
   * @throws SliceAllocationError with what was asked and what is free; nothing has changed then
   */
  resize(name: string, sms: number): SliceBudget {
    this.#check()
    const before = this.#reserved(name)
    checkInteger('sms', sms, 1)
    const others = this.#state.reserved.filter((each) => each !== before)
    const wanted = { ...before, requestedSms: sms, sms: granted(this.device, sms), bandwidthCap: null }
    // In its old place: who is youngest is who was allocated last.
    reserve(this.device, others, wanted, () => this.#state.pinned.size < this.numExperts, false)
    this.#followAgain({
      ...this.#state,
      reserved: this.#state.reserved.map((each) => (each === before ? wanted : each)),
    })
    return this.slice(name)
  }

  /** Gives a reserved slice back; experts that were moved there are the policy's again. */
  release(name: string): Plan {
    this.#check()
    const gone = this.#reserved(name)
    const reserved = this.#state.reserved.filter((each) => each !== gone)
    return this.#followAgain({ ...this.#state, reserved, pinned: without(this.#state.pinned, [name]) })
  }

  /**
   * Moves an expert into a reserved slice, for good, or with `null` back to the policy.
   * @throws RangeError when there is no such expert or reserved slice; SliceAllocationError when it comes back and all SMs are reserved
   */
  migrate(expert: number, slice: string | null): Plan {
    this.#check()
    checkInteger('expert', expert, 0, this.numExperts - 1)
    const pinned = new Map(this.#state.pinned)
    if (slice === null) pinned.delete(expert)
    else pinned.set(expert, this.#reserved(slice).name)
    const { minSms } = this.device
    const left = this.device.sms - this.#state.reserved.reduce((sum, each) => sum + each.sms, 0)
    if (pinned.size < this.numExperts && left < minSms) {
      throw new SliceAllocationError(
        `expert ${expert}: the policy's slices need ${minSms} SMs for it, ${left} are not reserved`,
        { requestedSms: minSms, freeSms: left },
      )
    }
    return this.#followAgain({ ...this.#state, pinned })
  }

  /** The budget of a slice of the plan, by name. */
  slice(name: string): SliceBudget {
    const found = this.#plan.slices.find((each) => each.name === name)
    if (found) return found
    throw new RangeError(
      `name: expected one of ${this.#plan.slices.map((s) => s.name).join(', ')}, got ${describe(name)}`,
    )
  }

  /**
   * Has the layouts built that are one portion of SMs away from this one, so that the next change is a switch.
   * @returns the layouts that are built now, this plan's first
   */
  buildAhead(): readonly Layout[] {
    this.#check()
    const slices = this.#plan.slices.map(({ name, grantedSms }) => ({ name, sms: grantedSms }))
    const sizes = this.#plan.slices.map(({ requestedSms, kind, grantedSms }) =>
      kind === 'policy' ? requestedSms : grantedSms,
    )
    const { granularity, minSms } = this.device
    const movable = this.#plan.slices.flatMap(({ kind }, i) => (kind === 'policy' ? [i] : []))
    for (const from of movable) {
      for (const to of movable) {
        if (from === to || (sizes[from] ?? 0) - granularity < minSms) continue
        const change = (i: number) => (i === to ? granularity : i === from ? -granularity : 0)
        this.#layouts.prepare(
          layoutOf(
            this.device.name,
            slices.map(({ name }, i) => ({ name, sms: (sizes[i] ?? 0) + change(i) })),
          ),
        )
      }
    }
    this.#layouts.use(this.#plan.key)
    return this.#layouts.built()
  }

  /** What has happened since the manager was made. */
  stats(): SliceManagerStats {
    const { dwell, hysteresis, ...rest } = this.#counts
    return { ...rest, kept: { dwell, hysteresis }, layouts: this.#layouts.built().length }
  }

  /** Gives every layout back. Any use after it throws. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#layouts.clear()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #firstReserved(aux: SliceManagerOptions['aux']): readonly Reservation[] {
    if (aux === undefined || aux === null) return []
    checkOptions('options.aux', aux, ['sms', 'bandwidthBytesPerSecond', 'l2Share', 'priority'])
    return reserve(
      this.device,
      [],
      reservation(this.device, { ...aux, name: auxSlice }),
      () => this.numExperts > 0,
      false,
    ).set
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('this SliceManager has been disposed of')
  }

  #reserved(name: string): Reservation {
    const found = this.#state.reserved.find((each) => each.name === name)
    if (found) return found
    const names = this.#state.reserved.map((each) => each.name).join(', ')
    throw new RangeError(
      `name: expected a reserved slice (${names === '' ? 'there is none' : names}), got ${describe(name)}`,
    )
  }

  /** Works out the plan of a state and takes both over. */
  #follow(next: State, utilization: readonly number[] | null = null): Plan {
    const pool = this.#poolOf(next.pinned)
    let spareForPool = this.device.sms
    for (const { sms } of next.reserved) spareForPool -= sms
    const snapshot = this.#snapshot(next, pool, spareForPool, utilization)
    const { step } = snapshot
    const decision = pool.length === 0 ? null : decide(this.#options.policy, snapshot)
    const gated: Gated | null = decision && gate(snapshot.current, decision, step, this.#options)
    const names = gated ? sliceNames(gated.sms.length) : []
    const grown = pool.length === 0 ? grownSms(this.device, next.reserved) : null
    const wanted: { readonly name: string; readonly sms: number }[] = []
    for (let s = 0; s < names.length; s++) wanted.push({ name: names[s] ?? '', sms: gated?.sms[s] ?? 0 })
    for (const [i, { name, sms }] of next.reserved.entries()) wanted.push({ name, sms: grown?.sms[i] ?? sms })
    if (grown && grown.spare > 0) wanted.push({ name: 'spare', sms: grown.spare })
    const layout = this.#layouts.layoutOf(wanted)
    const enforcements = this.#layouts.prepare(layout)
    const sliceOf = this.#sliceOf(next, pool, gated, wanted)
    const plan: Plan = {
      key: layout.key,
      step,
      device: this.device.name,
      policy: this.#options.policy.name,
      reason: decision?.reason ?? 'no expert is left to the policy',
      keptBecause: gated?.keptBecause ?? null,
      slices: budgets(this.device, layout, names.length, next.reserved, enforcements, sliceOf),
      sliceOf,
      predictedUs: gated && snapshot.cost && predictDecided(snapshot.cost, snapshot.load, gated),
    }
    const since = gated && snapshot.current && gated.movedSms === 0 ? snapshot.current.sinceStep : step
    const current = gated && { sms: gated.sms, sliceOf: gated.sliceOf, sinceStep: since }
    const followed = {
      from: next,
      layout,
      enforcements,
      plan,
      keptBecause: gated?.keptBecause ?? null,
      pool,
      current,
    }
    return this.#takeOver(utilization === null ? this.#followed.add(followed) : followed, next)
  }

  /** The same, for a change that tells the policy nothing new: a state that it has been followed in before leads where it did. */
  #followAgain(next: State): Plan {
    const found = this.#followed.find(next)
    // A layout that was given back and built again may be held otherwise.
    if (found === null || this.#layouts.prepare(found.layout) !== found.enforcements) return this.#follow(next)
    return this.#takeOver(found, next)
  }

  #takeOver({ plan, keptBecause, pool, current }: Followed, { reserved, pinned, profile }: State): Plan {
    this.#count(plan, keptBecause)
    this.#state = { reserved, pinned, current, pool, profile }
    this.#plan = plan
    this.#layouts.use(plan.key)
    return plan
  }

  #sliceOf(next: State, pool: readonly number[], gated: Gated | null, wanted: Layout['slices']): number[] {
    // The policy's slices come first, with the numbers that it gave them.
    if (gated && next.pinned.size === 0) return gated.sliceOf.slice()
    const sliceOf = new Array<number>(this.numExperts).fill(0)
    for (let i = 0; i < pool.length; i++) sliceOf[pool[i] ?? 0] = gated?.sliceOf[i] ?? 0
    for (const [e, name] of next.pinned) sliceOf[e] = wanted.findIndex((each) => each.name === name)
    return sliceOf
  }

  /** Experts that are the policy's: the same array as long as none is pinned or let go. */
  #poolOf(pinned: State['pinned']): readonly number[] {
    if (pinned !== this.#pool.pinned) {
      const experts: number[] = []
      for (let e = 0; e < this.numExperts; e++) if (!pinned.has(e)) experts.push(e)
      this.#pool = { pinned, experts }
    }
    return this.#pool.experts
  }

  #snapshot(next: State, pool: readonly number[], sms: number, utilization: readonly number[] | null): PolicySnapshot {
    const { current } = next
    const samePool = current !== null && sameNumbers(pool, next.pool)
    const { step, load, temperatures, forecast } = known(next.profile, pool)
    const { cost } = this.#options
    return {
      step,
      load,
      temperatures,
      forecast,
      current: samePool ? current : null,
      utilization: samePool && utilization?.length === current.sms.length ? utilization : null,
      constraints: {
        sms,
        granularity: this.device.granularity,
        minSms: this.device.minSms,
        slices: this.#options.slices,
        dwellSteps: this.#options.dwellSteps,
        switchUs: this.#options.switchUs,
      },
      cost: cost && costOfLoad(cost, load),
    }
  }

  #count(plan: Plan, keptBecause: Gated['keptBecause']): void {
    const first = this.#counts.plans++ === 0
    if (keptBecause) this.#counts[keptBecause]++
    if (first) return
    if (this.#plan.key !== plan.key) this.#counts.switches++
    this.#counts.migrations += migrations(this.#plan, plan)
  }
}

function without(pinned: ReadonlyMap<number, string>, names: readonly string[]): ReadonlyMap<number, string> {
  if (pinned.size === 0) return pinned
  return new Map([...pinned].filter(([, name]) => !names.includes(name)))
}
