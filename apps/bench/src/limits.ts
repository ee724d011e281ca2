/**
 * The physical limit that a measured time is divided by: max(bytes that must move / copy bandwidth, flop / matrix rate), both
 * as measured on an H200 (4.3 TB/s counting reads and writes, 790 TFLOP/s for an 8192³ bf16 product on random data).
 */
import type { Shape } from './shapes.js'

export const hbmBytesPerSecond = 4.3e12
export const bf16FlopPerSecond = 790e12
/** Bytes of the H200's second-level cache; inputs rotate until the weights they touch exceed three times this. */
export const l2Bytes = 60 * 2 ** 20

const bytesPerElement = 2

/** Bytes of one gated expert's weights (gate, up, down). */
export function expertBytes(s: Shape): number {
  return 3 * s.hidden * s.inter * bytesPerElement
}

/** Of the experts' products of so many tokens, both linear layers. */
export const layerFlop = ({ topK, hidden, inter }: Shape, tokens: number): number => 6 * tokens * topK * hidden * inter

/** @param expertsHit experts that got at least one token (a mean over the rotated inputs) */
export function limitUs(s: Shape, tokens: number, expertsHit: number): number {
  const bytes = expertsHit * expertBytes(s) + 2 * tokens * s.hidden * bytesPerElement
  return Math.max(bytes / hbmBytesPerSecond, layerFlop(s, tokens) / bf16FlopPerSecond) * 1e6
}

/** Inputs at most: further ones would find their weights as cold. */
const mostInputs = 16

/** Copies of the weights, so that a small model does not simply live in the cache; as many as there may be inputs, at most. */
export function weightCopies(s: Shape): number {
  return Math.min(mostInputs, Math.max(1, Math.ceil((3 * l2Bytes) / (s.experts * expertBytes(s)))))
}

/** Inputs to rotate over, so that the experts they choose exceed the cache; at most 16. */
export function inputCount(s: Shape, tokens: number): number {
  const hit = s.experts * (1 - (1 - s.topK / s.experts) ** tokens)
  return Math.min(mostInputs, Math.max(weightCopies(s), Math.ceil((3 * l2Bytes) / (hit * expertBytes(s)))))
}
