/**
 * What becomes of a failure beside the data path: it is counted, kept for `performanceStats()` and published on the diagnostics channel
 * `nexus:core`. The layer goes on with the plan that it has. The library itself prints nothing.
 */
import { channel } from 'node:diagnostics_channel'

/** A failure that the layer went on after, as plain data. */
export interface SchedulingFailure {
  /** What was being done: deciding a plan, building what it needs, or reading the counts. */
  readonly during: 'plan' | 'build' | 'profile'
  /** The layer's step that it happened after. */
  readonly step: number
  readonly name: string
  /** `ERR_NEXUS_*`; `null` when the error has none. */
  readonly code: string | null
  readonly message: string
}

/** What is published on the channel `nexus:core`. */
export interface CoreMessage extends SchedulingFailure {
  readonly type: 'scheduling-error'
  readonly error: unknown
}

const messages = channel('nexus:core')

/** Failures of one layer: how many, and the last one. */
export class Failures {
  #count = 0
  #last: SchedulingFailure | null = null

  report(during: SchedulingFailure['during'], step: number, error: unknown): void {
    const isError = error instanceof Error
    const code: unknown = isError ? Reflect.get(error, 'code') : undefined
    const failure: SchedulingFailure = {
      during,
      step,
      name: isError ? error.name : typeof error,
      code: typeof code === 'string' ? code : null,
      message: isError ? error.message : String(error),
    }
    this.#count++
    this.#last = failure
    if (messages.hasSubscribers) messages.publish({ type: 'scheduling-error', ...failure, error } satisfies CoreMessage)
  }

  get count(): number {
    return this.#count
  }

  get last(): SchedulingFailure | null {
    return this.#last
  }
}
