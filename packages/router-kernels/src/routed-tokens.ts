/**
 * What a router found: five device tensors that the grouped experts and `combine` read in place. They are results in stream order: they
 * may be handed on at once, and nothing waits for them until someone reads one on the host.
 */
import { checkInteger, type DeviceName, describe, Tensor } from '@nexus/native'
import { checkTensor } from './check.js'
import type { Placement } from './native.js'

/**
 * Tokens sorted into buckets by expert. A *slot* is t·topK + j: token t's j-th choice. One that is made by hand must hold what is said
 * here: shapes are checked on the host, what the tensors hold only where it is used: an offset or slot out of range fails the stream on the CPU, and
 * on CUDA leaves that row out. Neither reads or writes outside the tensors.
 */
export interface RoutedTokens {
  /** i32 [tokens, topK]: the chosen experts, best first. */
  readonly expertIds: Tensor
  /** f32 [tokens, topK]: the weights of those experts. */
  readonly weights: Tensor
  /** i32 [numExperts]: slots of each expert; they sum to tokens·topK. */
  readonly counts: Tensor
  /** i32 [numExperts + 1]: the exclusive prefix sum of `counts`; expert e owns rows offsets[e] to offsets[e + 1]. */
  readonly offsets: Tensor
  /** i32 [tokens·topK]: slots sorted by expert, ascending within one (a stable counting sort). */
  readonly order: Tensor
  readonly tokens: number
  readonly topK: number
  readonly numExperts: number
  /** Releases all five, in stream order: work that was enqueued on them still sees them. Twice is fine. */
  dispose(): void
  [Symbol.dispose](): void
}

export function routedTokens(parts: Omit<RoutedTokens, 'dispose' | typeof Symbol.dispose>): RoutedTokens {
  const dispose = (): void => {
    for (const tensor of [parts.expertIds, parts.weights, parts.counts, parts.offsets, parts.order]) tensor.dispose()
  }
  return { ...parts, dispose, [Symbol.dispose]: dispose }
}

/** The number of tokens routed, of choices each and of experts. */
export type RoutedSizes = Pick<RoutedTokens, 'tokens' | 'topK' | 'numExperts'>

/** Tensors of unspecified contents for so many tokens. */
export function emptyRouted({ tokens, topK, numExperts }: RoutedSizes, at: Placement): RoutedTokens {
  const made: Tensor[] = []
  const empty = (shape: number[], dtype: 'i32' | 'f32'): Tensor => {
    const tensor = Tensor.empty(shape, { dtype, ...at })
    made.push(tensor)
    return tensor
  }
  try {
    return routedTokens({
      expertIds: empty([tokens, topK], 'i32'),
      weights: empty([tokens, topK], 'f32'),
      counts: empty([numExperts], 'i32'),
      offsets: empty([numExperts + 1], 'i32'),
      order: empty([tokens * topK], 'i32'),
      tokens,
      topK,
      numExperts,
    })
  } catch (error) {
    for (const tensor of made) tensor.dispose()
    throw error
  }
}

/** @throws TypeError, RangeError naming the field of `out` that cannot take the result of routing so many tokens */
export function checkRoutedOut(out: RoutedTokens, sizes: RoutedSizes, device: DeviceName): void {
  if (typeof out !== 'object' || out === null) {
    throw new TypeError(`out must be what Router.route returns, got ${describe(out)}`)
  }
  for (const key of ['tokens', 'topK', 'numExperts'] as const) {
    if (out[key] !== sizes[key]) throw new RangeError(`out.${key} must be ${sizes[key]}, got ${describe(out[key])}`)
  }
  const { tokens, topK, numExperts } = sizes
  checkTensor('out.expertIds', out.expertIds, { dtype: 'i32', device, shape: [tokens, topK] })
  checkTensor('out.weights', out.weights, { dtype: 'f32', device, shape: [tokens, topK] })
  checkTensor('out.counts', out.counts, { dtype: 'i32', device, shape: [numExperts] })
  checkTensor('out.offsets', out.offsets, { dtype: 'i32', device, shape: [numExperts + 1] })
  checkTensor('out.order', out.order, { dtype: 'i32', device, shape: [tokens * topK] })
}

/** @throws TypeError, RangeError naming `routed` */
export function checkRouted(routed: RoutedTokens): void {
  if (typeof routed !== 'object' || routed === null) {
    throw new TypeError(`routed must be what Router.route returns, got ${describe(routed)}`)
  }
  checkInteger('routed.tokens', routed.tokens, 0, 2 ** 31 - 1)
  checkInteger('routed.topK', routed.topK, 1, 32)
}
