/** Points in a stream. */
import type { EventHandle } from './binding.js'
import { call } from './call.js'
import { type DeviceName, type DeviceSpec, deviceIndex, resolveDevice } from './device.js'
import { DisposedError } from './errors.js'
import { describe } from './options.js'
import type { Stream } from './stream.js'
import { streamOf } from './stream.js'

/** A point in a stream: others can wait for it, and the time between two can be read. May be recorded again. */
export class Event {
  readonly device: DeviceName
  #handle: EventHandle | null

  private constructor(device: DeviceName, handle: EventHandle) {
    this.device = device
    this.#handle = handle
  }

  /** @throws UnsupportedError where there is no such device */
  static create(device: DeviceSpec): Event {
    const name = resolveDevice(device)
    return new Event(
      name,
      call((b) => b.native.eventCreate(deviceIndex(name))),
    )
  }

  /** Marks the point that `stream` has now reached in its queue. */
  record(stream: Stream): void {
    const handle = eventOf(this)
    const on = streamOf(stream)
    call((b) => b.native.eventRecord(handle, on))
  }

  /** True when everything before the recorded point has finished. Never waits. */
  get ready(): boolean {
    const handle = eventOf(this)
    return call((b) => b.native.eventReady(handle))
  }

  /**
   * Milliseconds of device time from this event to `end`.
   * @throws RangeError when one of them was not recorded or has not finished
   */
  elapsedMs(end: Event): number {
    const [from, to] = [eventOf(this), eventOf(end)]
    return call((b) => b.native.eventElapsedMs(from, to))
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#handle === null
  }

  /** Frees the event. Twice is fine. */
  dispose(): void {
    const handle = this.#handle
    this.#handle = null
    if (handle !== null) call((b) => b.native.release(handle))
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal */
  static handle(event: Event): EventHandle {
    if (!(event instanceof Event)) throw new TypeError(`event: expected an Event, got ${describe(event)}`)
    if (event.#handle === null) throw new DisposedError('event: was disposed')
    return event.#handle
  }
}

/** The raw handle of an event. */
export const eventOf = (event: Event): EventHandle => Event.handle(event)
