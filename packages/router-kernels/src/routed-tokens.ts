/**
 * What a router found: five device tensors that the grouped experts and `combine` read in place. They are results in stream order: they
 * may be handed on at once, and nothing waits for them until someone reads one on the host.
 */
import { checkInteger, describe, type Tensor } from '@nexus/native'

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

/** @throws TypeError, RangeError naming `routed` */
export function checkRouted(routed: RoutedTokens): void {
  if (typeof routed !== 'object' || routed === null) {
    throw new TypeError(`routed must be what Router.route returns, got ${describe(routed)}`)
  }
  checkInteger('routed.tokens', routed.tokens, 0, 2 ** 31 - 1)
  checkInteger('routed.topK', routed.topK, 1, 32)
}
