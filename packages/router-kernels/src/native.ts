/**
 * The one file of this package that touches the native binding: buffers and streams of public objects, and scratch memory whose
 * release is queued behind its use.
 */
import { type DeviceName, type DeviceSpec, Event, resolveDevice, Stream, type Tensor } from '@nexus/native'
import {
  type BufferHandle,
  binding,
  bufferOf,
  call,
  deviceIndex,
  type StreamHandle,
  setTensorStream,
  streamOf,
  tensorStream,
} from '@nexus/native/binding'

export { dtypeCode, type RawMlpDesc, type RawRouterDesc } from '@nexus/native/binding'
export { binding, bufferOf, call, deviceIndex, streamOf }

/** Where a primitive runs. The stream is the one given, else the device's default one. */
export interface Placement {
  readonly device: DeviceName
  readonly stream: Stream
}

/**
 * The device is the one named, else that of the stream, else that of the first tensor given, else 'auto'.
 * @throws RangeError when the stream is on another device
 */
export function placement(device: DeviceSpec | undefined, stream: Stream | undefined, near?: Tensor | null): Placement {
  const name = device === undefined ? (stream?.device ?? near?.device ?? resolveDevice('auto')) : resolveDevice(device)
  if (stream === undefined) return { device: name, stream: Stream.default(name) }
  if (stream.device !== name) {
    throw new RangeError(`stream must be on device ${name}, got a stream on ${stream.device}`)
  }
  return { device: name, stream }
}

/** Work queued on `stream` from now on waits for whatever wrote `tensor` on another stream; the host does not wait. */
function follow(tensor: Tensor, stream: Stream): void {
  const writer = tensorStream(tensor)
  if (writer === stream) return
  using written = Event.create(stream.device)
  written.record(writer)
  stream.wait(written)
}

/** A tensor's buffer for reading on `stream`, ordered behind the stream that wrote it. */
export function readOn(stream: Stream, tensor: Tensor, name?: string): BufferHandle {
  const buffer = bufferOf(tensor, name)
  follow(tensor, stream)
  return buffer
}

export function readOrNull(stream: Stream, tensor: Tensor | null | undefined, name?: string): BufferHandle | null {
  return tensor ? readOn(stream, tensor, name) : null
}

/** A tensor's buffer for writing on `stream`: who reads it on the host from now on waits for that stream. */
export function writeOn(stream: Stream, tensor: Tensor, name?: string): BufferHandle {
  const buffer = readOn(stream, tensor, name)
  setTensorStream(tensor, stream)
  return buffer
}

/** Runs `use` with `bytes` of scratch memory; the memory goes back when the work that `use` enqueued is done. */
export function withScratch<T>(stream: Stream, bytes: number, use: (scratch: BufferHandle, on: StreamHandle) => T): T {
  const on = streamOf(stream)
  return call(() => {
    const scratch = binding().native.bufferCreate(on, bytes)
    try {
      return use(scratch, on)
    } finally {
      binding().native.release(scratch)
    }
  })
}
