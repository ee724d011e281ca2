/** What a step may be given, and its check: everything is refused by name before anything is enqueued. */
import { checkOptions, describe, isTensor, Stream, Tensor } from '@nexus/native'
import { checkTensor, sizeAt } from '@nexus/router-kernels/internal'
import { type LayerConfig, outputWidth } from './options.js'
import type { StepStats } from './stats.js'

/** Options of `enqueue`. */
export interface EnqueueOptions {
  /** f32 [tokens, numExperts]: takes the place of the router's own product. @default null */
  readonly logits?: Tensor | null
  /** Receives the output, and is what is returned. @default a new tensor, which the caller disposes of */
  readonly out?: Tensor
  /**
   * Where the step is queued, such as a slice's stream: behind all earlier steps of the layer, and in that slice where the stream keeps to
   * one. @default the layer's own
   */
  readonly stream?: Stream
}

/** Options of `forward`. */
export interface ForwardOptions extends EnqueueOptions {
  /** Return the chosen experts and their weights as well. @default false */
  readonly routing?: boolean
  /** Aborted before the step is queued, `forward` rejects with its reason; a queued step runs to its end. */
  readonly signal?: AbortSignal
}

/** What `forward` resolves to. The caller disposes of its tensors. */
export interface ForwardResult {
  /** [tokens, outputDim], or [tokens, topK·outputDim] with 'concat', of the layer's dtype. */
  readonly output: Tensor
  readonly stats: StepStats
  /** With `routing: true`: i32 and f32 [tokens, topK], best first. */
  readonly routing?: { readonly expertIds: Tensor; readonly weights: Tensor }
}

/** @returns the number of tokens */
export function checkInput(config: LayerConfig, x: Tensor): number {
  const { dtype, inputDim } = config.experts
  checkTensor('x', x, { dtype, device: config.device, shape: [null, inputDim], names: ['tokens', 'inputDim'] })
  return sizeAt(x, 0)
}

/** A tensor as it is, or a Float32Array converted; `temporary` is the tensor that this made, for the caller to dispose of. */
export function inputTensor(
  config: LayerConfig,
  stream: Stream,
  x: Tensor | Float32Array,
): { x: Tensor; temporary: Tensor | null } {
  if (isTensor(x)) return { x, temporary: null }
  if (!(x instanceof Float32Array)) throw new TypeError(`x must be a Tensor or a Float32Array, got ${describe(x)}`)
  const { inputDim, dtype } = config.experts
  if (x.length % inputDim !== 0) {
    throw new RangeError(`x must have a multiple of inputDim (${inputDim}) elements, got ${x.length}`)
  }
  const temporary = Tensor.from(x, [x.length / inputDim, inputDim], { dtype, device: config.device, stream })
  return { x: temporary, temporary }
}

export function checkLogits(config: LayerConfig, tokens: number, logits: Tensor | null, hasRouter: boolean): void {
  const { device, rule } = config
  if (logits !== null) {
    checkTensor('logits', logits, { dtype: 'f32', device, shape: [tokens, rule.numExperts] })
  } else if (!hasRouter) {
    throw new TypeError('logits must be a Tensor where the layer has no router weight, got null')
  }
}

/** The output to write to: the given one, checked, or a new one. */
export function outputTensor(config: LayerConfig, stream: Stream, tokens: number, out: Tensor | undefined): Tensor {
  const { device, experts } = config
  const shape = [tokens, outputWidth(config)]
  if (out === undefined) return Tensor.empty(shape, { dtype: experts.dtype, device, stream })
  return checkTensor('out', out, { dtype: experts.dtype, device, shape })
}

function checkStreamOption(stream: unknown): void {
  if (stream === undefined || stream instanceof Stream) return
  throw new TypeError(`stream must be a Stream, got ${describe(stream)}`)
}

const enqueueKeys = ['logits', 'out', 'stream'] as const
const forwardKeys = [...enqueueKeys, 'routing', 'signal'] as const

export function checkEnqueueOptions(options: EnqueueOptions): void {
  checkOptions('enqueue options', options, enqueueKeys)
  checkStreamOption(options.stream)
}

export function checkForwardOptions(options: ForwardOptions): void {
  checkOptions('forward options', options, forwardKeys)
  const { routing, signal, stream } = options
  checkStreamOption(stream)
  if (routing !== undefined && typeof routing !== 'boolean') {
    throw new TypeError(`routing must be a boolean, got ${describe(routing)}`)
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`signal must be an AbortSignal, got ${describe(signal)}`)
  }
  signal?.throwIfAborted()
}
