/**
 * Tenants: who shares a device. A tenant is a function that queues a step on a stream, or experts that run in the plan's slices, or any object
 * with a method under the symbol `nexus.tenant`, so that packages which know nothing of this one can take part.
 */
import { checkInteger, checkOptions, describe, isTensor, Stream, type Tensor } from '@nexus/native'
import type { GroupedExperts, RoutedTokens } from '@nexus/router-kernels'

/**
 * `Symbol.for('nexus.tenant')`: the method of this name queues one step of the object on the given stream, and on nothing else that
 * outlives the call. It may return anything; a promise is waited for by `run()`, the work itself has to be queued before it returns.
 */
export const tenant: unique symbol = Symbol.for('nexus.tenant')

/** An object that can be a tenant. */
export interface TenantObject {
  readonly [tenant]: (stream: Stream, ...args: never[]) => unknown
}

/** What can be said of every tenant. */
export interface TenantOptions {
  /**
   * Not empty, and another for each tenant.
   * @default the object's own `name` where that is a string, else `tenant-0`, `tenant-1`, …
   */
  readonly name?: string
  /**
   * The slice of the plan that it runs in, by name; `null`: none, it may use the whole device.
   * @default the slice that has the tenant's name; else none, and for experts the slices that the plan has put them into
   */
  readonly slice?: string | null
  /**
   * Its stream, which the caller keeps; not with `slice`. Experts begin and end there.
   * @default one of its own
   */
  readonly stream?: Stream
  /**
   * Of its streams: 0 is normal, negative more urgent. Not with a `pool` or a `stream`, which have theirs.
   * @default 0
   */
  readonly priority?: number
}

/** A function that queues one step. */
export interface FunctionTenant extends TenantOptions {
  enqueue(stream: Stream, ...args: never[]): unknown
  /** Arguments behind the stream for steps of `run()`. @default none */
  readonly args?: readonly unknown[]
}

/** Experts: each runs in the slice that the plan has put it into, all of them at the same time; the step ends when all have. */
export interface ExpertsTenant extends TenantOptions {
  readonly experts: GroupedExperts
  /** [tokens, inputDim] */
  readonly x: Tensor
  readonly routed: RoutedTokens
  /** f32 [tokens, topK]. @default null */
  readonly inputScale?: Tensor | null
  /** [tokens·topK, outputDim]. @default one of the schedule's own, which every step writes anew and `dispose()` frees */
  readonly out?: Tensor
}

/** An object with the tenant method, with a slice or name given here. */
export interface WrappedTenant extends TenantOptions {
  readonly tenant: TenantObject
  /** Arguments behind the stream for steps of `run()`. @default none */
  readonly args?: readonly unknown[]
}

export type Tenant = FunctionTenant | ExpertsTenant | WrappedTenant | TenantObject

/** A tenant, looked at. */
export interface TenantSpec {
  readonly name: string
  /** `undefined`: not said. */
  readonly slice: string | null | undefined
  readonly stream: Stream | null
  readonly priority: number | null
  readonly work:
    | {
        readonly kind: 'call'
        readonly args: readonly unknown[]
        call(stream: Stream, args: readonly unknown[]): unknown
      }
    | ({ readonly kind: 'experts' } & Pick<ExpertsTenant, 'experts' | 'x' | 'routed' | 'inputScale' | 'out'>)
}

const common = ['name', 'slice', 'stream', 'priority']
type Call = (stream: Stream, ...args: readonly unknown[]) => unknown

function methodOf(value: unknown): Call | null {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return null
  const method: unknown = Reflect.get(value, tenant)
  return typeof method === 'function' ? (stream, ...args) => Reflect.apply(method, value, [stream, ...args]) : null
}

function argsOf(name: string, value: unknown): readonly unknown[] {
  if (value === undefined) return []
  if (!Array.isArray(value)) throw new TypeError(`${name}.args: expected an array, got ${describe(value)}`)
  return value
}

function workOf(at: string, given: object): TenantSpec['work'] {
  if ('experts' in given) {
    checkOptions(at, given, [...common, 'experts', 'x', 'routed', 'inputScale', 'out'])
    const { experts, x, routed, inputScale, out } = given as ExpertsTenant
    // By what it can do: an ESM and a CommonJS copy of the package have a class each.
    if (typeof experts?.forward !== 'function' || typeof experts.spec?.numExperts !== 'number') {
      throw new TypeError(`${at}.experts: expected GroupedExperts, got ${describe(experts)}`)
    }
    if (!isTensor(x)) throw new TypeError(`${at}.x: expected a Tensor, got ${describe(x)}`)
    if (typeof routed !== 'object' || routed === null) {
      throw new TypeError(`${at}.routed: expected what Router.route returns, got ${describe(routed)}`)
    }
    if (out !== undefined && !isTensor(out)) throw new TypeError(`${at}.out: expected a Tensor, got ${describe(out)}`)
    return {
      kind: 'experts',
      experts,
      x,
      routed,
      ...(inputScale === undefined ? {} : { inputScale }),
      ...(out === undefined ? {} : { out }),
    }
  }
  const wrapped = 'tenant' in given
  checkOptions(at, given, [...common, wrapped ? 'tenant' : 'enqueue', 'args'])
  const args = argsOf(at, Reflect.get(given, 'args'))
  if (wrapped) {
    const method = methodOf(given.tenant)
    if (method === null) {
      throw new TypeError(
        `${at}.tenant: expected an object with a method Symbol.for('nexus.tenant'), got ${describe(given.tenant)}`,
      )
    }
    return { kind: 'call', args, call: (stream, own) => method(stream, ...own) }
  }
  const enqueue: unknown = Reflect.get(given, 'enqueue')
  if (typeof enqueue !== 'function') {
    throw new TypeError(
      `${at}: expected enqueue, experts, or an object with a method Symbol.for('nexus.tenant'), got ${describe(given)}`,
    )
  }
  return { kind: 'call', args, call: (stream, own) => Reflect.apply(enqueue, given, [stream, ...own]) }
}

function nameOf(at: string, given: object, i: number): string {
  const name: unknown = Reflect.get(given, 'name')
  if (name === undefined) return `tenant-${i}`
  if (typeof name !== 'string') throw new TypeError(`${at}.name: expected a string, got ${describe(name)}`)
  if (name === '') throw new RangeError(`${at}.name: expected a name, got ''`)
  return name
}

/** Tenants as given, looked at. @throws TypeError or RangeError naming the tenant and what is wrong */
export function tenantSpecs(tenants: readonly Tenant[]): TenantSpec[] {
  if (!Array.isArray(tenants)) throw new TypeError(`tenants: expected an array, got ${describe(tenants)}`)
  if (tenants.length === 0) throw new RangeError('tenants: expected at least one')
  if (tenants.length > 1024) throw new RangeError(`tenants: expected at most 1024, got ${tenants.length}`)
  const names = new Set<string>()
  return (tenants as readonly unknown[]).map((given, i): TenantSpec => {
    const at = `tenants[${i}]`
    const method = methodOf(given)
    let spec: TenantSpec
    if (method !== null && given !== null && (typeof given === 'object' || typeof given === 'function')) {
      // An object of somebody else's: nothing but its name is for us, and that only if it is one.
      const own: unknown = Reflect.get(given, 'name')
      const name = typeof own === 'string' && own !== '' ? own : `tenant-${i}`
      const call = (stream: Stream, args: readonly unknown[]) => method(stream, ...args)
      spec = { name, slice: undefined, stream: null, priority: null, work: { kind: 'call', args: [], call } }
    } else {
      if (typeof given !== 'object' || given === null) {
        throw new TypeError(`${at}: expected a tenant, got ${describe(given)}`)
      }
      const work = workOf(at, given)
      const { slice, stream, priority } = given as TenantOptions
      if (slice !== undefined && slice !== null && typeof slice !== 'string') {
        throw new TypeError(`${at}.slice: expected a slice's name or null, got ${describe(slice)}`)
      }
      if (stream !== undefined && !(stream instanceof Stream)) {
        throw new TypeError(`${at}.stream: expected a Stream, got ${describe(stream)}`)
      }
      if (stream !== undefined && typeof slice === 'string') {
        throw new TypeError(`${at}.stream: expected a slice or a stream, got both`)
      }
      if (priority !== undefined) checkInteger(`${at}.priority`, priority, -1000, 0)
      if (priority !== undefined && stream !== undefined) {
        throw new TypeError(`${at}.priority: expected none beside a stream, which has its own`)
      }
      spec = { name: nameOf(at, given, i), slice, stream: stream ?? null, priority: priority ?? null, work }
    }
    if (names.has(spec.name)) throw new RangeError(`${at}.name: there are two tenants '${spec.name}'`)
    names.add(spec.name)
    return spec
  })
}
