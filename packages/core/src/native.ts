/** The one file of this package that touches the native binding. */
export {
  type BufferHandle,
  binding,
  bufferOf,
  call,
  callAsync,
  deviceIndex,
  dtypeCode,
  type LayerHandle,
  type RawLayerDesc,
  type RawLayerWeights,
  type RawStepStats,
  streamOf,
} from '@nexus/native/binding'
// Reads and writes are ordered behind what other streams did to the tensor.
export { readOn, readOrNull, writeOn } from '@nexus/router-kernels/internal'
