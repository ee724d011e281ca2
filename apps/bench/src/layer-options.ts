/** The options that a layer of a shape has in every benchmark. */
import type { DeviceSpec } from '@nexus/core'
import type { Shape } from './shapes.js'

/** What is measured where a benchmark does not say otherwise: the device's usual dtype. */
export const usualDtype = (device: 'cpu' | 'cuda') => (device === 'cuda' ? 'bf16' : 'f32')

/** The shape as a layer's options, gated experts, softmax over all and the chosen weights renormalised. */
export const layerOptions = <D extends DeviceSpec, T extends 'bf16' | 'f32'>(shape: Shape, device: D, dtype: T) => ({
  inputDim: shape.hidden,
  hiddenDim: shape.inter,
  numExperts: shape.experts,
  topK: shape.topK,
  device,
  dtype,
})
