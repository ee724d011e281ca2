/**
 * Streams for tenants: of a partition's slices where there is one, else of the pool that was given, else new ones. No two tenants ever share
 * a stream, for in a stream the fast would wait for the slow.
 */
import { describe, Stream } from '@nexus/native'
import type { EnforcementKind, Plan, SlicePartition } from '@nexus/slices'
import type { StreamPool } from './pool.js'
import type { TenantSpec } from './tenant.js'

/** Where a tenant runs. */
export interface Placement {
  readonly spec: TenantSpec
  /** Slice of the whole tenant, as an index of the plan's slices; `null`: none, or for experts those of the plan. */
  readonly slice: number | null
  /** Whether its experts are spread over the plan's slices. */
  readonly spread: boolean
  /** What holds it to its slice or slices. */
  readonly enforcement: EnforcementKind
  /** Why it is so, for people. */
  readonly reason: string
  /** Where a step begins and ends. */
  readonly stream: Stream
  /** The stream for a slice of the plan, for experts that are spread by streams; `null` where one launch or one stream does. */
  readonly laneStream: ((slice: number) => Stream) | null
}

/** The streams of all tenants, and what to give back. */
export interface Placements {
  readonly tenants: readonly Placement[]
  /** @param failed - tenants whose streams are not to be used again: on the CPU, one that has failed stays so */
  release(failed?: ReadonlySet<string>): void
}

/** Stream numbers in use, by partition: schedules that share one do not share streams. */
const taken = new WeakMap<SlicePartition, Set<number>>()

function takeNumber(partition: SlicePartition): number {
  const used = taken.get(partition) ?? new Set<number>()
  taken.set(partition, used)
  let number = 0
  while (used.has(number)) number++
  used.add(number)
  return number
}

function sliceIndex(plan: Plan, spec: TenantSpec, i: number): number | null {
  if (spec.slice === null || spec.stream !== null) return null
  const found = plan.slices.findIndex(({ name }) => name === (spec.slice ?? spec.name))
  if (found >= 0) return found
  if (spec.slice === undefined) return null
  const names = plan.slices.map(({ name }) => name).join(', ')
  throw new RangeError(`tenants[${i}].slice: expected one of ${names}, got ${describe(spec.slice)}`)
}

/** @throws TypeError or RangeError naming what does not fit; nothing is left made then */
export function placeTenants(
  plan: Plan,
  specs: readonly TenantSpec[],
  partition: SlicePartition | null,
  pool: StreamPool | null,
  device: Stream['device'],
): Placements {
  const own: Stream[] = []
  const numbers = new Map<string, number>()
  const hold = partition?.hold()
  const release = (failed: ReadonlySet<string> = new Set()) => {
    for (const stream of own) stream.dispose()
    const used = partition === null ? undefined : taken.get(partition)
    for (const [name, number] of numbers) if (!failed.has(name)) used?.delete(number)
    numbers.clear()
    hold?.dispose()
  }
  try {
    const cooperative = partition === null && plan.slices.some(({ enforcement }) => enforcement === 'cooperative')
    const wanted = specs.map((spec, i) => {
      const slice = sliceIndex(plan, spec, i)
      const spread = spec.work.kind === 'experts' && slice === null && spec.slice !== null
      const byPartition = partition !== null && (slice !== null || spread)
      const plain = byPartition ? 0 : spread && !cooperative ? populated(plan).length : 1
      return { spec, slice, spread, byPartition, plain: Math.max(plain - (spec.stream === null ? 0 : 1), 0) }
    })
    const plainOf = plainStreams(wanted, pool, (priority) => {
      const stream = Stream.create({ device, priority })
      own.push(stream)
      return stream
    })
    const tenants = wanted.map(({ spec, slice, spread, byPartition }, i): Placement => {
      const priority = spec.priority ?? 0
      const plain = plainOf[i] ?? []
      if (byPartition && partition !== null) {
        const index = takeNumber(partition)
        numbers.set(spec.name, index)
        const lane = (s: number) => partition.stream(s, { priority, index })
        const first = slice ?? populated(plan)[0] ?? 0
        const { enforcement, reason } = partition.slices[first] ?? { enforcement: 'none', reason: '' }
        const stream = spec.stream ?? lane(first)
        return { spec, slice, spread, enforcement, reason, stream, laneStream: spread ? lane : null }
      }
      const stream = spec.stream ?? plain[0]
      if (stream === undefined) throw new RangeError(`tenants[${i}]: expected a stream for it`)
      const streams = spec.stream === null ? plain : [stream, ...plain]
      const by = cooperative && spec.work.kind === 'experts' && (spread || slice !== null)
      return {
        spec,
        slice,
        spread,
        enforcement: by ? 'cooperative' : 'none',
        reason: by
          ? 'one launch, its blocks divided by the shares of the slices'
          : 'streams of the whole device: nothing keeps them to a slice',
        stream,
        laneStream: spread && !cooperative ? spreadOver(plan, streams) : null,
      }
    })
    return { tenants, release }
  } catch (error) {
    release()
    throw error
  }
}

/** Slices that have experts. @internal */
export const populated = (plan: Plan): number[] =>
  plan.slices.flatMap(({ experts }, s) => (experts.length > 0 ? [s] : []))

/** A stream for each slice, those with experts first, in turn when there are fewer streams. */
function spreadOver(plan: Plan, streams: readonly Stream[]): (slice: number) => Stream {
  const order = populated(plan)
  for (const s of plan.slices.keys()) if (!order.includes(s)) order.push(s)
  return (slice) => streams[order.indexOf(slice) % streams.length] as Stream
}

/** Streams of the whole device for each tenant that needs some: one at least, and more from a pool while it lasts. */
function plainStreams(
  wanted: readonly { readonly spec: TenantSpec; readonly plain: number }[],
  pool: StreamPool | null,
  make: (priority: number) => Stream,
): Stream[][] {
  if (pool === null) {
    return wanted.map(({ spec, plain }) => Array.from({ length: plain }, () => make(spec.priority ?? 0)))
  }
  const needs = wanted.filter(({ spec, plain }) => plain > 0 && spec.stream === null)
  if (needs.length > pool.size) {
    throw new RangeError(`pool: expected at least ${needs.length} streams, one for each tenant, got ${pool.size}`)
  }
  let next = 0
  const result = wanted.map(({ spec, plain }, i): Stream[] => {
    if (plain === 0) return []
    if (spec.priority !== null) {
      throw new TypeError(`tenants[${i}].priority: expected none with a pool, whose streams have theirs`)
    }
    return spec.stream === null ? [pool.stream(next++)] : []
  })
  for (let more = true; more && next < pool.size; ) {
    more = false
    for (const [i, { plain }] of wanted.entries()) {
      const has = result[i] ?? []
      if (has.length >= plain || next >= pool.size) continue
      has.push(pool.stream(next++))
      more = true
    }
  }
  return result
}
