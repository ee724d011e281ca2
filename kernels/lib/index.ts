/**
 * Devices, tensors, streams and errors: what all Nexus packages share.
 * @packageDocumentation
 */
export type { CountRingHolder } from './count-ring.js'
export { type DeviceName, type DeviceSpec, resolveDevice } from './device.js'
export type { DType } from './dtype.js'
export {
  AllocationError,
  CheckpointError,
  DeviceError,
  DisposedError,
  GraphCaptureError,
  NativeLoadError,
  NexusError,
  type NexusErrorCode,
  OutOfMemoryError,
  UnsupportedError,
} from './errors.js'
export { Event } from './event.js'
export { Graph } from './graph.js'
export { LaneSet, type LaneSetOptions, type LaneSetUpdate } from './lane-set.js'
export type { FoundBy } from './loader.js'
export { checkInteger, checkNumber, checkOneOf, checkOptions, describe, requireOptions } from './options.js'
export { Stream, type StreamOptions } from './stream.js'
export {
  type CudaDeviceInfo,
  cpuThreads,
  type MachineInfo,
  type MemoryStats,
  memoryStats,
  type SystemInfo,
  setCpuThreads,
  systemInfo,
} from './system-info.js'
export {
  isTensor,
  type RandnOptions,
  Tensor,
  type TensorOptions,
  type TensorTarget,
  type WriteOptions,
} from './tensor.js'
export type { TensorData } from './tensor-data.js'
