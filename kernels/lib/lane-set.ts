/** Which lane runs which expert, as a table in device memory: experts migrate without a new graph. */
import type { LaneSetHandle } from './binding.js'
import { call, callAsync } from './call.js'
import { captureOn } from './capture.js'
import type { DeviceName } from './device.js'
import { DisposedError, GraphCaptureError } from './errors.js'
import { Event } from './event.js'
import { checkInteger, describe, requireOptions } from './options.js'
import { Stream, streamOf } from './stream.js'

/** Most lanes and experts of a table: kMaxLanes and kLaneExperts in kernels/include/nexus/step.h. */
const maxLanes = 64
const maxExperts = 1024

export interface LaneSetOptions {
  /** Where the table is written, now and by updates that name no stream. */
  readonly stream: Stream
  /** The lane of each expert, 0 to lanes - 1; at most 1024 experts. */
  readonly laneOf: readonly number[] | Int32Array
  /** 1 to 64. */
  readonly lanes: number
  /** Units by lane for a cooperative launch, each at least 1: lane l works on shares[l] / Σ shares of its blocks. @default 1 each */
  readonly shares?: readonly number[] | Int32Array
  /** Record which SMs (virtual workers) compute each lane's tiles. @default false */
  readonly trace?: boolean
}

export interface LaneSetUpdate {
  readonly laneOf: readonly number[] | Int32Array
  /** @default 1 each */
  readonly shares?: readonly number[] | Int32Array
  /** @default the stream that it was written on last */
  readonly stream?: Stream
}

function integers(name: string, values: unknown, length: number | null, min: number, max: number): Int32Array {
  if (!Array.isArray(values) && !(values instanceof Int32Array)) {
    throw new TypeError(`${name}: expected an array of integers, got ${describe(values)}`)
  }
  if (length !== null && values.length !== length) {
    throw new RangeError(`${name}: expected ${length} numbers, got ${values.length}`)
  }
  for (let i = 0; i < values.length; i++) checkInteger(`${name}[${i}]`, values[i], min, max)
  return Int32Array.from(values)
}

/**
 * Divides the experts of a layer among lanes. A launch runs one lane's experts (each lane on a stream of its own slice), or all of them at
 * once with its blocks divided by `shares` (cooperative). Which lane an expert is in never changes a bit of the result.
 *
 * An update is ordered on its stream, and launches on other streams wait for it; launches that still run with the old table are the caller's to
 * order before it: lanes are forked from a stream and joined again.
 */
export class LaneSet {
  readonly device: DeviceName
  readonly lanes: number
  readonly numExperts: number
  readonly traced: boolean
  #stream: Stream
  #handle: LaneSetHandle | null
  /** Behind the last update, and the streams that wait for it already. */
  readonly #updated: Event
  #ordered = new WeakSet<Stream>()

  /** @throws TypeError, RangeError naming the option; GraphCaptureError while the stream is recorded */
  constructor(options: LaneSetOptions) {
    requireOptions('LaneSet options', options, ['stream', 'laneOf', 'lanes', 'shares', 'trace'])
    const { stream, trace = false } = options
    const on = streamOf(stream)
    this.device = stream.device
    this.lanes = checkInteger('lanes', options.lanes, 1, maxLanes)
    if (typeof trace !== 'boolean') throw new TypeError(`trace: expected a boolean, got ${describe(trace)}`)
    this.traced = trace
    const laneOf = integers('laneOf', options.laneOf, null, 0, this.lanes - 1)
    this.numExperts = checkInteger('laneOf.length', laneOf.length, 1, maxExperts)
    const shares = this.#shares(options.shares)
    this.#stream = stream
    this.#handle = call((b) => b.slices.laneSetCreate(on, laneOf, this.lanes, shares, trace))
    try {
      this.#updated = Event.create(stream.device)
      this.#updated.record(stream)
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /**
   * Moves experts to other lanes, and changes shares: launches that come behind it use the new table, recorded ones too.
   * @throws TypeError, RangeError naming the option; DisposedError; GraphCaptureError while the stream is recorded
   */
  update(options: LaneSetUpdate): void {
    const handle = LaneSet.handle(this)
    requireOptions('update options', options, ['laneOf', 'shares', 'stream'])
    const laneOf = integers('laneOf', options.laneOf, this.numExperts, 0, this.lanes - 1)
    const shares = this.#shares(options.shares)
    const stream = options.stream ?? Stream.successor(this.#stream)
    const on = this.#checkStream(stream)
    this.#refuseCapture(stream)
    this.#orderOnto(stream)
    call((b) => b.slices.laneSetUpdate(handle, on, laneOf, shares))
    this.#stream = stream
    this.#updated.record(stream)
    this.#ordered = new WeakSet()
  }

  /**
   * The SMs (CPU: virtual workers) that have computed tiles of each lane since the last call, ascending, behind what is queued on `stream`.
   * @param stream @default the stream that it was written on last
   * @throws RangeError when it was made without `trace`; DisposedError; GraphCaptureError while the stream is recorded
   */
  async trace(stream?: Stream): Promise<number[][]> {
    const handle = LaneSet.handle(this)
    if (!this.traced) throw new RangeError('trace: expected a LaneSet made with trace: true')
    const queue = stream ?? Stream.successor(this.#stream)
    const on = this.#checkStream(queue)
    this.#refuseCapture(queue)
    this.#orderOnto(queue)
    const bits = await callAsync((b) => b.slices.laneSetTrace(handle, on))
    const words = bits.length / this.lanes
    return Array.from({ length: this.lanes }, (_, lane) => {
      const units: number[] = []
      for (let unit = 0; unit < words * 32; unit++) {
        if ((((bits[lane * words + (unit >> 5)] ?? 0) >>> (unit & 31)) & 1) === 1) units.push(unit)
      }
      return units
    })
  }

  #orderOnto(stream: Stream): void {
    if (this.#handle === null || stream === this.#stream || this.#ordered.has(stream)) return
    stream.wait(this.#updated)
    this.#ordered.add(stream)
  }

  get disposed(): boolean {
    return this.#handle === null
  }

  /** Frees the table behind the launches that use it. Twice is fine. */
  dispose(): void {
    const handle = this.#handle
    this.#handle = null
    if (handle === null) return
    this.#updated?.dispose()
    call((b) => b.native.release(handle))
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #shares(shares: LaneSetOptions['shares']): Int32Array | null {
    return shares === undefined ? null : integers('shares', shares, this.lanes, 1, 2 ** 20)
  }

  #checkStream(stream: Stream) {
    const handle = streamOf(stream)
    if (stream.device === this.device) return handle
    throw new RangeError(`stream: expected a stream on ${this.device}, got one on ${stream.device}`)
  }

  #refuseCapture(stream: Stream): void {
    if (captureOn(stream) === null) return
    throw new GraphCaptureError(
      'LaneSet: its table and trace cannot be touched while the stream is recorded; do it before',
    )
  }

  /** @internal */
  static handle(lanes: LaneSet): LaneSetHandle {
    if (!(lanes instanceof LaneSet)) throw new TypeError(`lanes: expected a LaneSet, got ${describe(lanes)}`)
    if (lanes.#handle === null) throw new DisposedError('lanes: was disposed')
    return lanes.#handle
  }

  /** @internal The handle for a launch on `stream`, which comes behind the last update. */
  static handleOn(stream: Stream, lanes: LaneSet): LaneSetHandle {
    const handle = LaneSet.handle(lanes)
    const capture = captureOn(stream)
    if (capture === null) lanes.#orderOnto(stream)
    else capture.reads(lanes, (launched) => lanes.#orderOnto(launched))
    return handle
  }
}

/** The raw handle of a lane set. */
export const laneSetOf = (lanes: LaneSet): LaneSetHandle => LaneSet.handle(lanes)

/** The raw handle for a launch on `stream`, which comes behind the last update. */
export const laneSetOn = (stream: Stream, lanes: LaneSet): LaneSetHandle => LaneSet.handleOn(stream, lanes)
