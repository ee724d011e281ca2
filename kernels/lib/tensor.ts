/** Tensors: dense arrays on a device. */
import type { BufferHandle } from './binding.js'
import { call, callAsync } from './call.js'
import { captureOn } from './capture.js'
import { type DeviceName, type DeviceSpec, deviceIndex, resolveDevice } from './device.js'
import { type DType, dtypeBytes, dtypeCode } from './dtype.js'
import { DisposedError, UnsupportedError } from './errors.js'
import { checkInteger, checkNumber, checkOptions, describe } from './options.js'
import { Stream, streamOf } from './stream.js'
import { checkData, checkDtype, checkShape, type TensorData } from './tensor-data.js'

const brand = Symbol.for('nexus.Tensor')
const internals = Symbol.for('nexus.Tensor.internals')

export interface TensorOptions {
  /** @default 'f32' ('i32' for data in an Int32Array) */
  readonly dtype?: DType
  /** @default the stream's device, or 'auto' */
  readonly device?: DeviceSpec
  /** Where the work that fills it is queued. @default the default stream of the device */
  readonly stream?: Stream
}

export interface RandnOptions extends TensorOptions {
  /** An integer of at least 0: equal seeds give equal bits on every device. @default 0 */
  readonly seed?: number
  /** Standard deviation. @default 1 */
  readonly scale?: number
}

export interface TensorTarget {
  /** @default the tensor's own */
  readonly dtype?: DType
  /** @default the tensor's own */
  readonly device?: DeviceSpec
}

export interface WriteOptions {
  /** Elements before the first that is written. @default 0 */
  readonly offset?: number
  /** What the bits of a Uint16Array are. @default the tensor's dtype */
  readonly dtype?: 'bf16' | 'f16'
}

interface Internals {
  handle: BufferHandle | null
  /** The stream that wrote it last: reading is ordered behind it. */
  stream: Stream
}

const tensorKeys = ['dtype', 'device', 'stream']

function streamFor(options: TensorOptions): Stream {
  const { device, stream } = options
  if (stream === undefined) return Stream.default(device ?? 'auto')
  streamOf(stream)
  if (device !== undefined && resolveDevice(device) !== stream.device) {
    throw new RangeError(`device: '${device}' is not the stream's device, ${stream.device}`)
  }
  return stream
}

/**
 * A dense row-major array on a device. Its contents are stream-ordered: making and filling return at once, reading gives a
 * promise. The memory is freed by `dispose()`, or when it is collected.
 */
export class Tensor {
  readonly shape: readonly number[]
  readonly dtype: DType
  readonly device: DeviceName
  /** Number of elements. */
  readonly size: number
  readonly byteLength: number
  /** @internal */
  readonly [brand] = true
  /** @internal */
  readonly [internals]: Internals

  /** @internal Made by the static functions. */
  constructor(handle: BufferHandle, shape: readonly number[], dtype: DType, stream: Stream) {
    const checked = checkShape(shape)
    this.shape = checked.shape
    this.size = checked.size
    this.dtype = dtype
    this.device = stream.device
    this.byteLength = checked.size * dtypeBytes[dtype]
    this[internals] = { handle, stream }
    Object.defineProperty(this, internals, { enumerable: false })
    Object.defineProperty(this, brand, { enumerable: false })
  }

  /**
   * A tensor holding a snapshot of `data`. Numbers are rounded to nearest even where the dtype is narrower.
   * @throws TypeError where data and dtype do not belong together (a Uint16Array needs 'bf16' or 'f16'); RangeError when data
   * has another number of elements than the shape; OutOfMemoryError; UnsupportedError where there is no such device
   */
  static from(data: TensorData, shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions('Tensor.from', options, tensorKeys)
    const asked = options.dtype === undefined ? undefined : checkDtype('dtype', options.dtype)
    const { source, dtype } = checkData(data, asked)
    const { size } = checkShape(shape)
    if (source.array.length !== size) {
      throw new RangeError(`data: expected ${size} elements for shape ${describe(shape)}, got ${source.array.length}`)
    }
    return filled(Tensor.empty(shape, { ...options, dtype }), ({ handle, stream }) => {
      call((b) => b.native.upload(streamOf(stream), handle, 0, source.array, dtypeCode[source.dtype], dtypeCode[dtype]))
    })
  }

  /**
   * A tensor with unspecified contents; `zeros` is the filled one.
   * @throws as `from`
   */
  static empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions('Tensor.empty', options, tensorKeys)
    const dtype = checkDtype('dtype', options.dtype ?? 'f32')
    const { size } = checkShape(shape)
    const stream = streamFor(options)
    return new Tensor(
      call((b) => b.native.bufferCreate(streamOf(stream), size * dtypeBytes[dtype])),
      shape,
      dtype,
      stream,
    )
  }

  /** @throws as `from` */
  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions('Tensor.zeros', options, tensorKeys)
    return filled(Tensor.empty(shape, options), ({ handle, stream }) => {
      call((b) => b.native.bufferFill(streamOf(stream), handle, 0))
    })
  }

  /**
   * Normal deviates of mean 0 and standard deviation `scale` (Philox, counter-based: the same bits for a seed on every device).
   * @throws as `from`; RangeError for dtype 'i32'
   */
  static randn(shape: readonly number[], options: RandnOptions = {}): Tensor {
    checkOptions('Tensor.randn', options, [...tensorKeys, 'seed', 'scale'])
    const { seed: givenSeed, scale: givenScale, ...rest } = options
    const seed = checkInteger('seed', givenSeed ?? 0)
    const scale = checkNumber('scale', givenScale ?? 1)
    if (options.dtype === 'i32') throw new RangeError("dtype: expected one of 'f32', 'bf16', 'f16', got 'i32'")
    const tensor = Tensor.empty(shape, rest)
    const { size, dtype } = tensor
    return filled(tensor, ({ handle, stream }) => {
      call((b) => b.native.fillNormal(streamOf(stream), handle, dtypeCode[dtype], size, seed, scale))
    })
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this[internals].handle === null
  }

  /** The contents as float32, whatever the dtype. @throws DisposedError; DeviceError when work before it failed */
  async toFloat32Array(): Promise<Float32Array> {
    const array = await this.#read('f32')
    if (!(array instanceof Float32Array)) throw new TypeError('the addon returned another array than a Float32Array')
    return array
  }

  /** The contents as they are: raw bits in a Uint16Array for bf16 and f16. @throws as `toFloat32Array` */
  async toArray(): Promise<Float32Array | Uint16Array | Int32Array> {
    return await this.#read('raw')
  }

  async #read(as: 'f32' | 'raw'): Promise<Float32Array | Uint16Array | Int32Array> {
    const { handle, stream } = orderedInternals(this)
    return await callAsync((b) => b.native.download(streamOf(stream), handle, 0, this.size, dtypeCode[this.dtype], as))
  }

  /**
   * A copy, in another dtype or on another device.
   * @throws UnsupportedError for a conversion to i32; DisposedError; OutOfMemoryError
   */
  async to(target: TensorTarget): Promise<Tensor> {
    checkOptions('to', target, ['dtype', 'device'])
    const dtype = checkDtype('dtype', target.dtype ?? this.dtype)
    const device = target.device === undefined ? this.device : resolveDevice(target.device)
    const { handle, stream } = orderedInternals(this)
    if (dtype !== this.dtype && dtype === 'i32') {
      throw new UnsupportedError(`dtype: there is no conversion from ${this.dtype} to i32`)
    }
    if (device !== this.device || (dtype !== this.dtype && this.dtype === 'i32')) {
      const result = Tensor.empty(this.shape, { dtype, device })
      try {
        if (dtype === this.dtype) await result.write(await this.toArray())
        else await result.write(await this.toFloat32Array())
        return result
      } catch (error) {
        result.dispose()
        throw error
      }
    }
    const result = Tensor.empty(this.shape, { dtype, stream })
    const copy = orderedInternals(result).handle
    const [from, to] = [dtypeCode[this.dtype], dtypeCode[dtype]]
    await callAsync(async (b) => {
      const queue = streamOf(stream)
      if (from === to) b.native.copy(queue, copy, 0, handle, 0, this.byteLength)
      else b.native.cast(queue, handle, from, copy, to, this.size)
      await b.native.streamSynchronize(queue)
    }).catch((error: unknown) => {
      result.dispose()
      throw error
    })
    return result
  }

  /**
   * Writes `data` into the tensor from element `offset` on, chunk by chunk and off the JavaScript thread: for filling big
   * tensors. `data` must not be changed or transferred until the promise settles.
   * @throws TypeError where data and dtype do not belong together; RangeError when it does not fit; DisposedError
   */
  async write(data: TensorData, options: WriteOptions = {}): Promise<void> {
    checkOptions('write', options, ['offset', 'dtype'])
    const { handle, stream } = orderedInternals(this)
    const offset = checkInteger('offset', options.offset ?? 0)
    const bits = options.dtype === undefined ? this.dtype : checkDtype('dtype', options.dtype)
    const { source } = checkData(data, data instanceof Uint16Array ? bits : this.dtype)
    if ((source.dtype === 'i32') !== (this.dtype === 'i32')) {
      throw new TypeError(`data: expected data for ${this.dtype}, got ${describe(data)}`)
    }
    if (offset + source.array.length > this.size) {
      throw new RangeError(`data: ${source.array.length} elements at offset ${offset} do not fit into ${this.size}`)
    }
    const [from, to] = [dtypeCode[source.dtype], dtypeCode[this.dtype]]
    const first = offset * dtypeBytes[this.dtype]
    await callAsync((b) => b.native.uploadAsync(streamOf(stream), handle, first, source.array, from, to))
  }

  /** Frees the memory once queued work is done with it. Twice is fine. */
  dispose(): void {
    const own = this[internals]
    const { handle } = own
    own.handle = null
    if (handle !== null) call((b) => b.native.release(handle))
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** True for tensors, also those of another copy of this module. */
export function isTensor(value: unknown): value is Tensor {
  return typeof value === 'object' && value !== null && Reflect.get(value, brand) === true
}

/** A new tensor, filled; its memory goes back at once when that cannot be queued. */
function filled(tensor: Tensor, fill: (internals: { handle: BufferHandle; stream: Stream }) => void): Tensor {
  try {
    fill(orderedInternals(tensor))
  } catch (error) {
    tensor.dispose()
    throw error
  }
  return tensor
}

/** The handle, and a stream on which it can be used after all that was queued for it. */
function orderedInternals(tensor: Tensor): { handle: BufferHandle; stream: Stream } {
  const own = tensor[internals]
  if (own.handle === null) throw new DisposedError('tensor: was disposed')
  own.stream = Stream.successor(own.stream)
  return { handle: own.handle, stream: own.stream }
}

/**
 * The raw handle of a tensor.
 * @throws TypeError, naming the argument, when it is no tensor; DisposedError
 */
export function bufferOf(tensor: Tensor, name = 'tensor'): BufferHandle {
  if (!isTensor(tensor)) throw new TypeError(`${name}: expected a Tensor, got ${describe(tensor)}`)
  const { handle } = tensor[internals]
  if (handle === null) throw new DisposedError(`${name}: was disposed`)
  return handle
}

/** The stream on which a tensor's own operations are queued. */
export function tensorStream(tensor: Tensor): Stream {
  return orderedInternals(tensor).stream
}

/** The stream that wrote a tensor last, disposed of or not. */
export const tensorWriter = (tensor: Tensor): Stream => tensor[internals].stream

/** Work queued on `stream` from now on waits for what wrote the tensor on another stream. */
export function followTensor(tensor: Tensor, stream: Stream): void {
  const own = tensor[internals]
  if (own.stream === stream) return
  if (own.stream.device !== stream.device) {
    throw new RangeError(`stream: is on ${stream.device}, the tensor on ${tensor.device}`)
  }
  const from = streamOf(orderedInternals(tensor).stream)
  const to = streamOf(stream)
  if (own.stream === stream) return // a disposed stream's successor
  call(({ native }) => {
    const event = native.eventCreate(deviceIndex(stream.device))
    try {
      native.eventRecord(event, from)
      native.streamWait(to, event)
    } finally {
      native.release(event)
    }
  })
}

/** Says that `stream` writes the tensor from now on: reading it is ordered behind that stream. */
export function setTensorStream(tensor: Tensor, stream: Stream): void {
  streamOf(stream)
  if (stream.device !== tensor.device) {
    throw new RangeError(`stream: is on ${stream.device}, the tensor on ${tensor.device}`)
  }
  addTensorWriter(tensor, stream)
  tensor[internals].stream = stream
}

/**
 * Says that `stream` writes a part of the tensor, whose own stream stays: other parts are written on other streams, and all of them are
 * joined into the tensor's own.
 */
export function addTensorWriter(tensor: Tensor, stream: Stream): void {
  const own = tensor[internals]
  const writtenOn = (on: Stream): void => {
    own.stream = on
  }
  captureOn(stream)?.writes(tensor, writtenOn, own.stream)
}

/** A tensor around a buffer that was made on `stream`; it owns the buffer from here. */
export function tensorFromBuffer(buffer: BufferHandle, shape: readonly number[], dtype: DType, stream: Stream): Tensor {
  return new Tensor(buffer, shape, dtype, stream)
}
