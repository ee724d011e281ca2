/** One step of all tenants: forked from one point of the device, each on its own stream, each failure kept to its tenant. */
import { Event, type Stream } from '@nexus/native'
import type { ExpertLanes, LaneMarks } from './expert-lanes.js'
import type { Placement } from './placement.js'
import type { ScheduleResult, TenantResult } from './schedule-types.js'

/** A tenant of a schedule, with what it has done. */
export interface Member {
  readonly place: Placement
  readonly slice: string | null
  readonly lanes: ExpertLanes | null
  steps: number
  errors: number
  lastMs: number | null
  /** Something went wrong on the device: its streams cannot be trusted. */
  deviceFailed: boolean
}

/** Queues one step. */
export function queueStep(
  member: Member,
  args: readonly unknown[] | null,
  marks: LaneMarks[] | null,
  newEvent: () => Event,
) {
  member.steps++
  try {
    const { work } = member.place.spec
    if (member.lanes !== null) return member.lanes.queue(marks, newEvent)
    return work.kind === 'call' ? work.call(member.place.stream, args ?? work.args) : undefined
  } catch (error) {
    member.errors++
    throw error
  }
}

interface Queued {
  readonly member: Member
  readonly begin: Event
  readonly end: Event
  readonly marks: LaneMarks[]
  value: unknown
  failed: boolean
  error: unknown
}

const isThenable = (value: unknown): value is PromiseLike<unknown> =>
  typeof value === 'object' && value !== null && typeof Reflect.get(value, 'then') === 'function'

/** Queues a step of all, and returns what tells how it went: a promise that never rejects. */
export function runAll(
  origin: Stream,
  members: readonly Member[],
  argsOf: (name: string) => readonly unknown[] | null,
  into: Stream | null,
): Promise<ScheduleResult> {
  const events: Event[] = []
  const newEvent = () => {
    const event = Event.create(origin.device)
    events.push(event)
    return event
  }
  try {
    const start = newEvent()
    start.record(origin)
    const queued = members.map((member): Queued => {
      const { stream, spec } = member.place
      const step: Queued = {
        member,
        begin: newEvent(),
        end: newEvent(),
        marks: [],
        value: undefined,
        failed: false,
        error: null,
      }
      try {
        stream.wait(start)
        step.begin.record(stream)
        try {
          step.value = queueStep(member, argsOf(spec.name), step.marks, newEvent)
        } finally {
          step.end.record(stream)
        }
      } catch (error) {
        step.failed = true
        step.error = error
      }
      return step
    })
    if (into !== null) for (const { failed, end } of queued) if (!failed) into.wait(end)
    return settle(start, queued).finally(() => {
      for (const event of events) event.dispose()
    })
  } catch (error) {
    for (const event of events) event.dispose()
    throw error
  }
}

async function settle(start: Event, queued: readonly Queued[]): Promise<ScheduleResult> {
  const fail = (step: Queued) => (error: unknown) => {
    if (step.failed) return
    step.failed = true
    step.error = error
    step.member.errors++
    step.member.deviceFailed = true
  }
  await Promise.all(
    queued.map(async (step) => {
      const { place, lanes } = step.member
      const waits: PromiseLike<unknown>[] = []
      for (const stream of new Set([place.stream, ...(lanes?.streams ?? [])])) {
        if (!stream.disposed) waits.push(stream.synchronize())
      }
      if (isThenable(step.value)) {
        const promised = Promise.resolve(step.value)
        waits.push(
          promised.then((value) => {
            step.value = value
          }),
        )
      }
      // All of them: nothing of this step is under way when it is told to be over.
      for (const result of await Promise.allSettled(waits)) if (result.status === 'rejected') fail(step)(result.reason)
    }),
  )
  let ms: number | null = null
  const tenants = queued.map((step): TenantResult => {
    const { member, begin, end, marks } = step
    let own: number | null = null
    let lanes: TenantResult['lanes'] = []
    if (!step.failed) {
      try {
        own = begin.elapsedMs(end)
        lanes = marks.map((mark) => ({ slice: mark.slice, ms: mark.begin.elapsedMs(mark.end) }))
        ms = Math.max(ms ?? 0, start.elapsedMs(end))
        member.lastMs = own
      } catch (error) {
        fail(step)(error)
      }
    }
    const value = step.failed ? undefined : step.value
    const error = step.failed ? step.error : null
    return { name: member.place.spec.name, slice: member.slice, ms: step.failed ? null : own, lanes, value, error }
  })
  return { tenants, ms }
}
