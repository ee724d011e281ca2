/** The one file of this package that touches the native binding. */
export {
  type BufferHandle,
  binding,
  bufferOf,
  type CountRingHandle,
  call,
  callAsync,
  captureOn,
  countRingOf,
  deviceIndex,
  dtypeCode,
  type LayerGraphHandle,
  type LayerHandle,
  type LayerPlanHandle,
  laneSetOf,
  nativeVersion,
  type RawLayerDesc,
  type RawLayerWeights,
  type RawLinearDesc,
  type RawStepStats,
  type RawVariantCandidate,
  type StreamHandle,
  strategyKinds,
  streamOf,
} from '@nexus/native/binding'
// Reads and writes are ordered behind what other streams did to the tensor.
export { readOn, readOrNull, writeOn } from '@nexus/router-kernels/internal'
