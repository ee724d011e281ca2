/** The one file of this package that touches the native binding: buffers and streams of public objects, ordered behind each other. */
import { type DeviceName, type DeviceSpec, resolveDevice, Stream, type Tensor } from '@nexus/native'
import { type BufferHandle, bufferOf, orderBehind, setTensorStream } from '@nexus/native/binding'

export {
  addTensorWriter,
  type BufferHandle,
  binding,
  bufferOf,
  type Capture,
  call,
  captureOn,
  countRingOf,
  deviceIndex,
  dtypeCode,
  laneSetOn,
  type RawMlpDesc,
  type RawRouterDesc,
  streamOf,
} from '@nexus/native/binding'

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

/**
 * The placement of one call: `at`, or the stream that the call names.
 * @throws RangeError when that stream is on another device
 */
export function placementOf(at: Placement, stream: Stream | undefined): Placement {
  return stream === undefined || stream === at.stream ? at : placement(at.device, stream)
}

/** A tensor's buffer for reading on `stream`, ordered behind the stream that wrote it. */
export function readOn(stream: Stream, tensor: Tensor, name?: string): BufferHandle {
  const buffer = bufferOf(tensor, name)
  orderBehind(stream, tensor)
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
