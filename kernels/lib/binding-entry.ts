/**
 * The seam for the other packages' `src/native.ts`, and for nobody else: the raw addon and what makes and opens tensors.
 * Not covered by semantic versioning.
 * @packageDocumentation
 */
export type * from './binding.js'
export { energyColumns, enforcementKinds, strategyKinds } from './binding.js'
export { binding, call, callAsync } from './call.js'
export { type Capture, captureOn } from './capture.js'
export { countRingHandle, countRingOf } from './count-ring.js'
export { deviceIndex } from './device.js'
export { type DType, dtypeBytes, dtypeCode, dtypes } from './dtype.js'
export { toNexusError } from './errors.js'
export { eventOf } from './event.js'
export { laneSetOf, laneSetOn } from './lane-set.js'
export { type LoadedAddon, loadAddon, nativeVersion } from './loader.js'
export { orderBehind } from './ordering.js'
export { adoptStream, streamOf } from './stream.js'
export { addTensorWriter, bufferOf, setTensorStream, tensorFromBuffer, tensorStream } from './tensor.js'
