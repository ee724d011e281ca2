/**
 * Several tenants on one device, each in its slice of a plan. `run()` is one step of all; a tenant's own `enqueue` is never joined with
 * the others', so that a fast one does not wait for a slow one.
 */
import { checkOptions, type DeviceName, DisposedError, describe, Event, resolveDevice, Stream } from '@nexus/native'
import type { Plan, SlicePartition } from '@nexus/slices'
import { ExpertLanes } from './expert-lanes.js'
import { type Placements, placeTenants } from './placement.js'
import { fork, StreamPool } from './pool.js'
import { type Member, queueStep, runAll } from './schedule-run.js'
import type { RunOptions, ScheduleOptions, ScheduleResult, ScheduleStats, TenantTrace } from './schedule-types.js'
import { TenantStep } from './step.js'
import { type TenantSpec, tenantSpecs } from './tenant.js'

const keys = [
  'tenants',
  'partition',
  'pool',
  'device',
  'signal',
  'trace',
] as const satisfies readonly (keyof ScheduleOptions)[]

/** One tenant of a schedule. */
export interface TenantHandle {
  readonly name: string
  /** Where its steps begin and end: what is queued here is ordered with them. */
  readonly stream: Stream
  /**
   * Queues one step, behind the tenant's earlier ones and beside everybody else's. Never waits.
   * @param args - behind the stream; the tenant's `args` when there are none
   * @throws what the tenant throws; DisposedError; the signal's reason
   */
  enqueue(...args: readonly unknown[]): TenantStep
}

/** Made by {@link schedule}. */
export class Schedule {
  readonly device: DeviceName
  readonly #members: readonly Member[]
  readonly #placements: Placements
  /** Where steps fork from. It never waits for a tenant, so that none can hold the others up or take them down. */
  readonly #origin: Stream
  readonly #signal: AbortSignal | null
  #plan: Plan
  #runs = 0
  #active = 0
  #disposed = false
  #released = false

  /** @internal */
  constructor(
    plan: Plan,
    device: DeviceName,
    placements: Placements,
    members: readonly Member[],
    signal: AbortSignal | null,
  ) {
    this.#plan = plan
    this.device = device
    this.#placements = placements
    this.#members = members
    this.#signal = signal
    this.#origin = Stream.create({ device })
  }

  /** The plan that it follows. */
  get plan(): Plan {
    return this.#plan
  }

  /**
   * One step of all tenants, each in its slice, side by side; everything is queued when this returns its promise, which resolves when all
   * are done. A tenant that fails has its `error` in the result and does not touch the others.
   * @throws rejects with TypeError or RangeError for wrong options, DisposedError, or the signal's reason
   */
  async run(options?: RunOptions): Promise<ScheduleResult> {
    this.#check()
    checkOptions('options', options, ['args', 'after', 'into'])
    const args: Readonly<Record<string, unknown>> = options?.args ?? {}
    checkOptions(
      'options.args',
      args,
      this.#members.map(({ place }) => place.spec.name),
    )
    for (const [name, own] of Object.entries(args)) {
      if (!Array.isArray(own)) throw new TypeError(`options.args.${name}: expected an array, got ${describe(own)}`)
    }
    if (options?.after !== undefined) fork(options.after, [this.#origin])
    const argsOf = (name: string) => (Object.hasOwn(args, name) ? (args[name] as readonly unknown[]) : null)
    const whole = runAll(this.#origin, this.#members, argsOf, options?.into ?? null)
    this.#runs++
    this.#active++
    const settled = whole.finally(() => {
      this.#active--
      this.#releaseWhenDone()
    })
    return await unlessAborted(settled, this.#signal)
  }

  /** A tenant, by name. @throws RangeError when there is none such */
  tenant(name: string): TenantHandle {
    const member = this.#members.find(({ place }) => place.spec.name === name)
    if (member === undefined) {
      const names = this.#members.map(({ place }) => place.spec.name).join(', ')
      throw new RangeError(`name: expected one of ${names}, got ${describe(name)}`)
    }
    const { stream } = member.place
    return {
      name,
      stream,
      enqueue: (...args) => {
        this.#check()
        const value = queueStep(member, args.length > 0 ? args : null, null, () => Event.create(this.device))
        return new TenantStep(stream, value)
      },
    }
  }

  /**
   * Follows another plan of the same layout: experts move between slices from each tenant's next step on, by a table on the device.
   * @throws RangeError when the plan has another layout, for which another schedule has to be made
   */
  follow(plan: Plan): void {
    this.#check()
    checkPlan(plan)
    if (plan.key !== this.#plan.key) {
      throw new RangeError(`plan: expected the layout '${this.#plan.key}', got '${plan.key}': make another schedule`)
    }
    for (const { lanes } of this.#members) lanes?.follow(plan)
    this.#plan = plan
  }

  /**
   * Which SMs (CPU: virtual workers) have computed for each lane of experts since the last call, as the kernels recorded it.
   * @throws RangeError when it was made without `trace: true`; DisposedError
   */
  async trace(): Promise<readonly TenantTrace[]> {
    this.#check()
    return await Promise.all(
      this.#members.map(async ({ place, lanes }) => ({
        name: place.spec.name,
        lanes: lanes === null ? [] : await lanes.trace(),
      })),
    )
  }

  stats(): ScheduleStats {
    return {
      plan: this.#plan.key,
      runs: this.#runs,
      active: this.#active,
      tenants: this.#members.map(({ place, slice, steps, errors, lastMs }) => ({
        name: place.spec.name,
        slice,
        enforcement: place.enforcement,
        enforcementReason: place.reason,
        width: place.stream.disposed ? 0 : place.stream.width,
        steps,
        errors,
        lastMs,
      })),
    }
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** Takes no more steps; what is under way ends as it would, and then all is given back. Never waits. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    this.#releaseWhenDone()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #releaseWhenDone(): void {
    if (!this.#disposed || this.#active > 0 || this.#released) return
    this.#released = true
    for (const { lanes } of this.#members) lanes?.dispose()
    const failed = this.#members.filter(({ deviceFailed }) => deviceFailed)
    this.#placements.release(new Set(failed.map(({ place }) => place.spec.name)))
    this.#origin.dispose()
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('this Schedule has been disposed of')
    this.#signal?.throwIfAborted()
  }
}

/** The promise, or a rejection with the signal's reason when that fires first. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | null): Promise<T> {
  if (signal === null) return await promise
  let stop = () => {}
  const aborted = new Promise<never>((_, reject) => {
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    stop = () => signal.removeEventListener('abort', onAbort)
  })
  try {
    return await Promise.race([promise, aborted])
  } finally {
    stop()
  }
}

function checkPlan(plan: Plan): void {
  if (typeof plan !== 'object' || plan === null || !Array.isArray(plan.slices) || !Array.isArray(plan.sliceOf)) {
    throw new TypeError(`plan: expected a Plan, got ${describe(plan)}`)
  }
}

function checkPartition(plan: Plan, partition: SlicePartition | null): void {
  if (partition === null) {
    const held = plan.slices.find(({ enforcement }) => enforcement === 'hardware')
    if (held === undefined) return
    throw new TypeError(
      `partition: expected the partition of '${plan.key}' (enforcer.partition(plan)), for slice '${held.name}' is held by hardware`,
    )
  }
  // By what it can do: an ESM and a CommonJS copy of the package have a class each.
  if (typeof partition.hold !== 'function' || !Array.isArray(partition.slices)) {
    throw new TypeError(`partition: expected a SlicePartition, got ${describe(partition)}`)
  }
  const said = (slices: readonly { readonly name: string }[], sms: (i: number) => number | undefined) =>
    slices.map(({ name }, i) => `${name}=${sms(i)}`).join(' ')
  const expected = said(plan.slices, (i) => plan.slices[i]?.grantedSms)
  const got = said(partition.slices, (i) => partition.slices[i]?.units)
  if (got !== expected) throw new RangeError(`partition: expected the slices ${expected}, got ${got}`)
}

function deviceOf(options: ScheduleOptions, specs: readonly TenantSpec[]): DeviceName {
  const { device, partition, pool } = options
  if (device !== undefined) return resolveDevice(device)
  const near = partition?.device ?? pool?.device
  if (near !== undefined) return near
  for (const { stream, work } of specs) {
    if (stream !== null) return stream.device
    if (work.kind === 'experts') return work.x.device
  }
  return resolveDevice('auto')
}

/**
 * Puts tenants into the slices of a plan. With a `partition`, each runs on streams of its slice; where the plan's budgets are
 * `cooperative`, experts divide the blocks of one launch by the shares; else they have plain streams, and nothing is enforced.
 * @example
 * ```ts
 * const plan = manager.update(profiler.snapshot())
 * using steps = schedule(plan, {
 *   partition: enforcer.partition(plan),
 *   tenants: [
 *     { name: 'decode', slice: 'decode', tenant: decodeLayer },
 *     { name: 'prefill', experts, x, routed },              // its experts in the slices hot, warm, cold
 *   ],
 * })
 * const { tenants } = await steps.run({ args: { decode: [tokens] } })
 * ```
 * @throws TypeError or RangeError naming what is wrong; UnsupportedError, OutOfMemoryError; nothing is left made then
 */
export function schedule(plan: Plan, options: ScheduleOptions): Schedule {
  checkPlan(plan)
  if (typeof options !== 'object' || options === null) {
    throw new TypeError(`options: expected an object, got ${describe(options)}`)
  }
  checkOptions('options', options, keys)
  const { partition = null, pool = null, signal = null, trace = false } = options
  if (pool !== null && !(pool instanceof StreamPool)) {
    throw new TypeError(`pool: expected a StreamPool, got ${describe(pool)}`)
  }
  if (signal !== null && !(signal instanceof AbortSignal)) {
    throw new TypeError(`signal: expected an AbortSignal, got ${describe(signal)}`)
  }
  if (typeof trace !== 'boolean') throw new TypeError(`trace: expected a boolean, got ${describe(trace)}`)
  signal?.throwIfAborted()
  checkPartition(plan, partition)
  const specs = tenantSpecs(options.tenants)
  const device = deviceOf(options, specs)
  for (const [name, there] of [
    ['partition', partition?.device],
    ['pool', pool?.device],
    ...specs.flatMap(({ stream, work }, i) => [
      [`tenants[${i}].stream`, stream?.device] as const,
      [`tenants[${i}].x`, work.kind === 'experts' ? work.x.device : undefined] as const,
    ]),
  ] as const) {
    if (there !== undefined && there !== device)
      throw new RangeError(`${name}: expected device ${device}, got ${there}`)
  }
  const placements = placeTenants(plan, specs, partition, pool, device)
  const members: Member[] = []
  try {
    for (const place of placements.tenants) {
      const { work } = place.spec
      const lanes = work.kind === 'experts' ? new ExpertLanes(plan, place, work, trace) : null
      const slice = place.slice === null ? null : (plan.slices[place.slice]?.name ?? null)
      members.push({ place, slice, lanes, steps: 0, errors: 0, lastMs: null, deviceFailed: false })
    }
    return new Schedule(plan, device, placements, members, signal)
  } catch (error) {
    for (const { lanes } of members) lanes?.dispose()
    placements.release()
    throw error
  }
}
