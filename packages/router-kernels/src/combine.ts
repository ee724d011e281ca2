/** Brings the experts' rows back to their tokens, in slot order and float32, so that the sum is the same on every run. */
import { checkOneOf, checkOptions, describe, type Stream, Tensor } from '@nexus/native'
import { checkTensor, sizeAt } from './check.js'
import { checkFloatDType } from './mlp-options.js'
import { binding, call, dtypeCode, placement, readOn, readOrNull, streamOf, writeOn } from './native.js'
import { checkRouted, type RoutedTokens } from './routed-tokens.js'

/**
 * `weighted-sum`: y[t] = Σⱼ w[t, j]·rows[t·topK + j] + sharedScale[t]·shared[t]. `concat`: y[t] = the weighted rows side by side,
 * [tokens, topK·width].
 */
export type CombineMode = 'weighted-sum' | 'concat'
export const combineModes = ['weighted-sum', 'concat'] as const

/** Options of {@link combine}. */
export interface CombineOptions {
  /** @default 'weighted-sum' */
  readonly mode?: CombineMode
  /** `false`: every weight is 1 (Llama-4, where the weight scaled the input). @default true */
  readonly weighted?: boolean
  /** [tokens, width], the shared expert's rows; with 'weighted-sum' only. @default null */
  readonly shared?: Tensor | null
  /** f32 [tokens], with `shared` only. @default null: 1 */
  readonly sharedScale?: Tensor | null
  /** Receives the result, and is what is returned. @default a new tensor, which the caller disposes of */
  readonly out?: Tensor
  /** @default the device's default stream */
  readonly stream?: Stream
}

/**
 * Combines the rows of `GroupedExperts.forward` into one row per token.
 * @param rows [tokens·topK, width] in slot order
 * @returns [tokens, width], or [tokens, topK·width] for 'concat', of the rows' dtype
 */
export function combine(rows: Tensor, routed: RoutedTokens, options: CombineOptions = {}): Tensor {
  checkOptions('combine options', options, ['mode', 'weighted', 'shared', 'sharedScale', 'out', 'stream'])
  const { mode = 'weighted-sum', weighted = true, shared = null, sharedScale = null } = options
  checkOneOf('mode', mode, combineModes)
  if (typeof weighted !== 'boolean') throw new TypeError(`weighted must be a boolean, got ${describe(weighted)}`)
  checkRouted(routed)
  const { tokens, topK } = routed
  checkTensor('rows', rows, { shape: [tokens * topK, null], names: ['tokens·topK', 'width'] })
  const { dtype } = rows
  checkFloatDType('the dtype of rows', dtype)
  const width = sizeAt(rows, 1)
  const { device, stream } = placement(undefined, options.stream, rows)
  checkTensor('rows', rows, { device })
  checkTensor('routed.weights', routed.weights, { dtype: 'f32', device, shape: [tokens, topK] })
  if (shared !== null) {
    if (mode === 'concat') throw new TypeError("shared must be null with mode 'concat', got a Tensor")
    checkTensor('shared', shared, { dtype, device, shape: [tokens, width] })
  }
  if (sharedScale !== null) {
    if (shared === null) throw new TypeError('sharedScale needs shared, which is null')
    checkTensor('sharedScale', sharedScale, { dtype: 'f32', device, shape: [tokens] })
  }
  const shape = [tokens, mode === 'concat' ? topK * width : width]
  if (options.out !== undefined) checkTensor('out', options.out, { dtype, device, shape })

  const input = readOn(stream, rows)
  const weights = weighted ? readOn(stream, routed.weights) : null
  const sharedRows = readOrNull(stream, shared)
  const scale = readOrNull(stream, sharedScale)
  const out = options.out ?? Tensor.empty(shape, { dtype, device, stream })
  try {
    const into = writeOn(stream, out)
    const code = dtypeCode[dtype]
    const modeCode = combineModes.indexOf(mode)
    call(() =>
      binding().routerKernels.combine(
        streamOf(stream),
        modeCode,
        code,
        input,
        weights,
        sharedRows,
        scale,
        tokens,
        width,
        topK,
        into,
      ),
    )
  } catch (error) {
    if (options.out === undefined) out.dispose()
    throw error
  }
  return out
}
