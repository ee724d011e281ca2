/** In-order queues of device work. */
import type { EventHandle, StreamHandle } from './binding.js'
import { call, callAsync } from './call.js'
import { type DeviceName, type DeviceSpec, deviceIndex, resolveDevice } from './device.js'
import { DisposedError } from './errors.js'
import { type Event, eventOf } from './event.js'
import { checkInteger, checkOptions, describe } from './options.js'

export interface StreamOptions {
  /** @default 'auto' */
  readonly device?: DeviceSpec
  /**
   * 0 is normal, negative more urgent, as in CUDA; the CPU ignores it.
   * @default 0
   */
  readonly priority?: number
  /**
   * Most SMs that its persistent kernels fill with blocks, 1 or more, so that neighbours find the rest free. Advisory: nothing holds
   * other kernels to it, and the CPU ignores it. No bit of a result depends on it.
   * @default all that it may use
   */
  readonly maxWidth?: number
  /**
   * Asks for kernels with little shared memory and few registers, which leave room for another stream's blocks on the same SM, at some
   * loss of speed alone. No bit of a result depends on it; the CPU ignores it.
   * @default false
   */
  readonly shareSm?: boolean
  /**
   * Bytes of weights that its kernels have under way at a time, about. What they ask for beyond latency times bandwidth (some 5 MB on an
   * H200) only waits in the memory's queues, and a neighbour's loads wait behind it. Advisory: kernels with a ring of buffers, which read many
   * experts' weights on compute 9.0, keep to it as far as whole buffers go; others, and the CPU, ignore it. No bit of a result depends on it.
   * @default as many as their buffers hold
   */
  readonly readAheadBytes?: number
}

const defaults = new Map<DeviceName, Stream>()

/** An in-order queue of work on one device. Streams of a device run side by side unless they `wait` for each other's events. */
export class Stream {
  readonly device: DeviceName
  #handle: StreamHandle | null
  /** Recorded at dispose(): what was queued may still be running, and tensors made here are ordered behind it. */
  #last: EventHandle | null = null

  private constructor(device: DeviceName, handle: StreamHandle) {
    this.device = device
    this.#handle = handle
  }

  /**
   * @throws TypeError, RangeError for wrong options; UnsupportedError where there is no such device
   */
  static create(options: StreamOptions = {}): Stream {
    checkOptions('Stream.create', options, ['device', 'priority', 'maxWidth', 'shareSm', 'readAheadBytes'])
    const device = resolveDevice(options.device ?? 'auto')
    const priority = checkInteger('priority', options.priority ?? 0, -1000, 0)
    const maxWidth = options.maxWidth === undefined ? 0 : checkInteger('maxWidth', options.maxWidth, 1, 65536)
    const { shareSm = false } = options
    if (typeof shareSm !== 'boolean') throw new TypeError(`shareSm: expected a boolean, got ${describe(shareSm)}`)
    const { readAheadBytes } = options
    const ahead = readAheadBytes === undefined ? 0 : checkInteger('readAheadBytes', readAheadBytes, 1)
    return new Stream(
      device,
      call((b) => b.native.streamCreate(deviceIndex(device), priority, maxWidth, shareSm, ahead)),
    )
  }

  /** The stream that is used where none is given: one per device in each JavaScript environment. Cannot be disposed. */
  static default(device: DeviceSpec): Stream {
    const name = resolveDevice(device)
    let stream = defaults.get(name)
    if (stream === undefined) {
      stream = Stream.create({ device: name })
      defaults.set(name, stream)
    }
    return stream
  }

  /**
   * Resolves when everything queued so far has finished; rejects with what went wrong in it.
   */
  async synchronize(): Promise<void> {
    const handle = streamOf(this)
    await callAsync((b) => b.native.streamSynchronize(handle))
  }

  /** What is queued from now on starts after `event`. The host does not wait. */
  wait(event: Event): void {
    const [handle, point] = [streamOf(this), eventOf(event)]
    call((b) => b.native.streamWait(handle, point))
  }

  /** Units that its work may use: SMs, on the CPU virtual workers. Those of its slice, or all of the device. */
  get width(): number {
    const handle = streamOf(this)
    return call((b) => b.native.streamWidth(handle))
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#handle === null
  }

  /** Frees the stream after its queued work; tensors made on it stay usable. Twice is fine; the default stream stays. */
  dispose(): void {
    const handle = this.#handle
    if (handle === null || defaults.get(this.device) === this) return
    this.#last = call((b) => {
      const last = b.native.eventCreate(deviceIndex(this.device))
      b.native.eventRecord(last, handle)
      b.native.release(handle)
      return last
    })
    this.#handle = null
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal */
  static adopt(device: DeviceName, handle: StreamHandle): Stream {
    return new Stream(device, handle)
  }

  /** @internal */
  static handle(stream: Stream): StreamHandle {
    if (!(stream instanceof Stream)) throw new TypeError(`stream: expected a Stream, got ${describe(stream)}`)
    if (stream.#handle === null) throw new DisposedError('stream: was disposed')
    return stream.#handle
  }

  /** @internal The stream itself, or the default stream of its device ordered behind all that a disposed one had queued. */
  static successor(stream: Stream): Stream {
    const last = stream.#last
    if (last === null) return stream
    const next = Stream.default(stream.device)
    const handle = streamOf(next)
    call((b) => b.native.streamWait(handle, last))
    return next
  }
}

/** The raw handle of a stream. */
export const streamOf = (stream: Stream): StreamHandle => Stream.handle(stream)

/** A stream around a raw handle, such as a slice's; it owns the handle from here. */
export const adoptStream = (device: DeviceName, handle: StreamHandle): Stream => Stream.adopt(device, handle)
