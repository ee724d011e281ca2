/**
 * Streams to spread work over, made once. Fork and join by events: the device waits, the host does not.
 */
import {
  checkInteger,
  checkOptions,
  type DeviceName,
  type DeviceSpec,
  DisposedError,
  describe,
  Event,
  resolveDevice,
  Stream,
} from '@nexus/native'

/** Options of {@link StreamPool}. */
export interface StreamPoolOptions {
  /** @default 'auto' */
  readonly device?: DeviceSpec
  /**
   * Streams, 1 to 1024.
   * @default 8
   */
  readonly size?: number
  /**
   * Priority of each stream, the first ones first: 0 is normal, negative more urgent, as in CUDA; the CPU ignores it.
   * @default 0 for all
   */
  readonly priorities?: readonly number[]
}

/**
 * @example
 * ```ts
 * using pool = new StreamPool({ size: 4 })
 * const streams = pool.fork(main)                 // they wait for what `main` has queued
 * for (const stream of streams) layer.enqueue(x, { stream })
 * pool.join(main, streams)                        // and `main` goes on when all are done
 * ```
 */
export class StreamPool {
  readonly device: DeviceName
  /** All streams, in order. The pool disposes of them. */
  readonly streams: readonly Stream[]
  #disposed = false

  /** @throws TypeError or RangeError naming the option; UnsupportedError where there is no such device */
  constructor(options: StreamPoolOptions = {}) {
    checkOptions('options', options, ['device', 'size', 'priorities'])
    const size = checkInteger('options.size', options.size ?? 8, 1, 1024)
    const priorities: unknown = options.priorities ?? []
    if (!Array.isArray(priorities)) {
      throw new TypeError(`options.priorities: expected an array, got ${describe(priorities)}`)
    }
    if (priorities.length > size) {
      throw new RangeError(`options.priorities: expected at most ${size} numbers, got ${priorities.length}`)
    }
    const checked = priorities.map((value, i) => checkInteger(`options.priorities[${i}]`, value, -1000, 0))
    this.device = resolveDevice(options.device ?? 'auto')
    const made: Stream[] = []
    try {
      for (let i = 0; i < size; i++) made.push(Stream.create({ device: this.device, priority: checked[i] ?? 0 }))
    } catch (error) {
      for (const stream of made) stream.dispose()
      throw error
    }
    this.streams = made
  }

  /** How many streams there are. */
  get size(): number {
    return this.streams.length
  }

  /** One of the streams. @throws TypeError, RangeError when there is none such; DisposedError */
  stream(i: number): Stream {
    this.#check()
    checkInteger('i', i, 0, this.size - 1)
    return this.streams[i] as Stream
  }

  /**
   * The first `count` streams, which from now on wait for what `from` has queued so far. `from` may be one of them: it does not wait for
   * itself.
   * @param count - @default all
   * @throws TypeError, RangeError; DisposedError
   */
  fork(from: Stream, count: number = this.size): Stream[] {
    this.#check()
    const chosen = this.streams.slice(0, checkInteger('count', count, 0, this.size))
    fork(from, chosen)
    return chosen
  }

  /** `into` goes on when all that the streams have queued so far is done. @throws DisposedError */
  join(into: Stream, streams: readonly Stream[] = this.streams): void {
    this.#check()
    join(into, streams)
  }

  /** Frees the streams after their queued work. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    for (const stream of this.streams) stream.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('this StreamPool has been disposed of')
  }
}

/** The streams wait for what `from` has queued so far. @internal */
export function fork(from: Stream, streams: readonly Stream[]): void {
  if (streams.every((stream) => stream === from)) return
  using point = Event.create(from.device)
  point.record(from)
  for (const stream of streams) if (stream !== from) stream.wait(point)
}

/** `into` waits for what the streams have queued so far. @internal */
export function join(into: Stream, streams: readonly Stream[]): void {
  for (const stream of streams) {
    if (stream === into) continue
    using point = Event.create(stream.device)
    point.record(stream)
    into.wait(point)
  }
}
