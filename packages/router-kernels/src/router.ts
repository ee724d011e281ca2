/**
 * A router by hand: tokens (or their logits) in, buckets by expert out. Two kernels: the product, and one that scores, selects,
 * weighs, counts and sorts. Everything is stream-ordered: no promise, no wait.
 */
import { checkInteger, DisposedError, requireOptions, Tensor } from '@nexus/native'
import { checkTensor, sizeAt } from './check.js'
import type { RawRouterDesc } from './native.js'
import {
  binding,
  bufferOf,
  call,
  deviceIndex,
  dtypeCode,
  type Placement,
  placement,
  readOn,
  readOrNull,
  streamOf,
  withScratch,
} from './native.js'
import { type RoutedTokens, routedTokens } from './routed-tokens.js'
import { checkSelectBias, type RouterOptions, routerDesc, routerRuleKeys } from './router-options.js'

const optionKeys = [...routerRuleKeys, 'selectBias', 'weight', 'bias', 'inputDim', 'device', 'stream']
const maxSlots = 2 ** 31 - 1

/**
 * Chooses experts for tokens. Non-finite logits are defined: NaN and −∞ count as the most negative float, +∞ as the largest, so that a
 * masked expert gets weight 0 under softmax and no expert out of range is ever chosen. Ties go to the lower expert index.
 *
 * @example
 * using router = new Router(routers.mixtral({ numExperts: 8, topK: 2 }))
 * using routed = router.route(null, logits)
 * const counts = await routed.counts.toArray()
 */
export class Router {
  readonly numExperts: number
  readonly topK: number
  readonly #at: Placement
  readonly #desc: RawRouterDesc
  readonly #weight: Tensor | null
  readonly #bias: Tensor | null
  readonly #selectBias: Tensor | null
  readonly #owned: Tensor[] = []
  #disposed = false

  /** @throws TypeError or RangeError naming the option; UnsupportedError when the device cannot be used */
  constructor(options: RouterOptions) {
    requireOptions('Router options', options, optionKeys)
    this.#desc = routerDesc(options)
    checkSelectBias('selectBias', options.selectBias, options)
    this.numExperts = options.numExperts
    this.topK = options.topK
    const weight = options.weight ?? null
    if (weight !== null) checkTensor('weight', weight, { dtype: ['f32', 'bf16', 'f16'] })
    if (options.inputDim !== undefined) checkInteger('inputDim', options.inputDim, 1, maxSlots)
    this.#at = placement(options.device, options.stream, weight)
    if (weight !== null) {
      const shape = [this.numExperts, options.inputDim ?? null]
      checkTensor('weight', weight, { device: this.#at.device, shape, names: ['numExperts', 'inputDim'] })
    }
    this.#weight = weight
    try {
      this.#bias = this.#perExpert('bias', options.bias)
      this.#selectBias = this.#perExpert('selectBias', options.selectBias)
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /** Columns that tokens must have for the router's own product; `null` for a router without `weight`. */
  get inputDim(): number | null {
    return this.#weight === null ? null : sizeAt(this.#weight, 1)
  }

  /**
   * The router's own product: logits[t, e] = Σₕ tokens[t, h]·weight[e, h] + bias[e], accumulated in float32.
   * @param tokens [T, inputDim]; where `weight` is not f32 it must have the tokens' dtype
   * @returns f32 [T, numExperts]; the caller disposes of it
   */
  logits(tokens: Tensor): Tensor {
    this.#check()
    const weight = this.#weight
    if (weight === null) throw new TypeError('weight is missing: a router made without it takes logits only')
    const inputDim = sizeAt(weight, 1)
    const { device, stream } = this.#at
    const dtype = weight.dtype === 'f32' ? (['f32', 'bf16', 'f16'] as const) : weight.dtype
    checkTensor('tokens', tokens, { dtype, device, shape: [null, inputDim], names: ['tokens', 'inputDim'] })
    const count = sizeAt(tokens, 0)
    const x = readOn(stream, tokens)
    const w = readOn(stream, weight)
    const bias = readOrNull(stream, this.#bias)
    const logits = Tensor.empty([count, this.numExperts], { dtype: 'f32', device, stream })
    try {
      call(() =>
        binding().routerKernels.routerLogits(
          streamOf(stream),
          x,
          dtypeCode[tokens.dtype],
          w,
          dtypeCode[weight.dtype],
          bias,
          count,
          inputDim,
          this.numExperts,
          bufferOf(logits),
        ),
      )
    } catch (error) {
      logits.dispose()
      throw error
    }
    return logits
  }

  /**
   * Scores, selects, weighs, counts and sorts.
   * @param tokens [T, inputDim]; only its number of rows matters when `logits` are given, and then it may be `null`
   * @param logits f32 [T, numExperts]; without them the router computes its own from `tokens`
   */
  route(tokens: Tensor | null, logits?: Tensor): RoutedTokens {
    this.#check()
    if (logits !== undefined) {
      this.#checkLogits(logits, tokens)
      return this.#route(logits)
    }
    if (tokens === null) throw new TypeError('logits must be a Tensor where tokens is null, got undefined')
    const own = this.logits(tokens)
    try {
      return this.#route(own)
    } finally {
      own.dispose()
    }
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** Releases what the router made itself (biases from arrays); tensors that it was given stay the caller's. */
  dispose(): void {
    this.#disposed = true
    for (const tensor of this.#owned) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('this Router was disposed')
  }

  #checkLogits(logits: Tensor, tokens: Tensor | null): void {
    const rows = tokens === null ? null : sizeAt(checkTensor('tokens', tokens, { shape: [null, null] }), 0)
    const { device } = this.#at
    checkTensor('logits', logits, {
      dtype: 'f32',
      device,
      shape: [rows, this.numExperts],
      names: ['tokens', 'numExperts'],
    })
  }

  #perExpert(name: string, value: Float32Array | Tensor | null | undefined): Tensor | null {
    if (value === null || value === undefined) return null
    const { device, stream } = this.#at
    if (!(value instanceof Float32Array)) {
      return checkTensor(name, value, { dtype: 'f32', device, shape: [this.numExperts], names: ['numExperts'] })
    }
    if (value.length !== this.numExperts) {
      throw new RangeError(`${name} must have numExperts (${this.numExperts}) elements, got ${value.length}`)
    }
    const tensor = Tensor.from(value, [this.numExperts], { dtype: 'f32', device, stream })
    this.#owned.push(tensor)
    return tensor
  }

  #route(logits: Tensor): RoutedTokens {
    const { device, stream } = this.#at
    const tokens = sizeAt(logits, 0)
    const { numExperts, topK } = this
    if (tokens * topK > maxSlots) throw new RangeError(`tokens × topK must be below 2^31, got ${tokens} × ${topK}`)
    const input = readOn(stream, logits)
    const selectBias = readOrNull(stream, this.#selectBias)
    const i32 = { dtype: 'i32', device, stream } as const
    const routed = routedTokens({
      expertIds: Tensor.empty([tokens, topK], i32),
      weights: Tensor.empty([tokens, topK], { dtype: 'f32', device, stream }),
      counts: Tensor.empty([numExperts], i32),
      offsets: Tensor.empty([numExperts + 1], i32),
      order: Tensor.empty([tokens * topK], i32),
      tokens,
      topK,
      numExperts,
    })
    try {
      const bytes = call(() => binding().routerKernels.routeWorkspaceBytes(deviceIndex(device), this.#desc, tokens))
      withScratch(stream, bytes, (scratch, on) =>
        binding().routerKernels.route(
          on,
          this.#desc,
          input,
          selectBias,
          tokens,
          bufferOf(routed.expertIds),
          bufferOf(routed.weights),
          bufferOf(routed.counts),
          bufferOf(routed.offsets),
          bufferOf(routed.order),
          scratch,
        ),
      )
    } catch (error) {
      routed.dispose()
      throw error
    }
    return routed
  }
}
