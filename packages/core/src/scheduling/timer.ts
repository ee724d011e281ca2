/**
 * Times some steps, each by two events around it that are read long after: neither the device nor the host waits for them. So the
 * predictions are corrected also where all steps come by `enqueue`, which measures nothing itself.
 */
import { type DeviceName, Event, type Stream } from '@nexus/native'
import type { StrategyName } from './options.js'

/** What a timed step took on the device. */
export interface TimedStep {
  readonly strategy: StrategyName
  readonly tokens: number
  readonly ms: number
}

/** Steps that may be timed before the first of them is read: those of a trial, and one of before. */
const mostPending = 8

const none: readonly TimedStep[] = []

interface Slot {
  readonly start: Event
  readonly end: Event
  pending: { readonly strategy: StrategyName; readonly tokens: number } | null
}

export class StepTimer {
  readonly #slots: Slot[] = []
  #open: Slot | null = null
  #pending = 0

  constructor(device: DeviceName) {
    const made: Event[] = []
    const event = (): Event => {
      const each = Event.create(device)
      made.push(each)
      return each
    }
    try {
      for (let i = 0; i < mostPending; i++) this.#slots.push({ start: event(), end: event(), pending: null })
    } catch (error) {
      for (const each of made) each.dispose()
      throw error
    }
  }

  /** Nothing is waited for. */
  get idle(): boolean {
    return this.#pending === 0
  }

  /** Another step may be timed. */
  get armed(): boolean {
    return this.#pending < mostPending
  }

  /** The step comes next on `stream`. Where it fails, `end` is not called, and nothing was timed. */
  begin(stream: Stream): void {
    this.#open = this.#slots.find(({ pending }) => pending === null) ?? null
    this.#open?.start.record(stream)
  }

  /** The step that `begin` was called before has been queued. */
  end(stream: Stream, strategy: StrategyName, tokens: number): void {
    const slot = this.#open
    if (slot === null) return
    slot.end.record(stream)
    slot.pending = { strategy, tokens }
    this.#pending++
    this.#open = null
  }

  /** The timed steps that have finished since. */
  take(): readonly TimedStep[] {
    if (this.#pending === 0) return none
    return this.#slots.flatMap((slot) => {
      const { pending, start, end } = slot
      if (pending === null || !end.ready) return []
      slot.pending = null
      this.#pending--
      return [{ ...pending, ms: start.elapsedMs(end) }]
    })
  }

  dispose(): void {
    for (const { start, end } of this.#slots) {
      start.dispose()
      end.dispose()
    }
  }
}
