/**
 * A router by hand: tokens (or their logits) in, buckets by expert out. Two kernels: the product, and one that scores, selects,
 * weighs, counts and sorts. Everything is stream-ordered: no promise, no wait.
 */
import {
  type CountRingHolder,
  checkInteger,
  checkOptions,
  DisposedError,
  requireOptions,
  type Stream,
  Tensor,
} from '@nexus/native'
import { checkTensor, sizeAt } from './check.js'
import type { BufferHandle, RawRouterDesc } from './native.js'
import {
  binding,
  bufferOf,
  call,
  countRingOf,
  deviceIndex,
  dtypeCode,
  type Placement,
  placement,
  placementOf,
  readOn,
  readOrNull,
  streamOf,
  writeOn,
} from './native.js'
import { checkRoutedOut, emptyRouted, type RoutedTokens } from './routed-tokens.js'
import { checkSelectBias, type RouterOptions, routerDesc, routerRuleKeys } from './router-options.js'
import { Workspace } from './workspace.js'

/** Options of {@link Router.route}. */
export interface RouteOptions {
  /** A `CountRing` of `@nexus/profiler/native` of as many experts, which gets the counts too; it serves one stream at a time. */
  readonly ring?: CountRingHolder
  /** @default the router's own stream */
  readonly stream?: Stream
  /** A result of as many tokens, which is overwritten and returned: a step that allocates nothing. @default a new one */
  readonly out?: RoutedTokens
}

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
  readonly #scratch = new Workspace()
  /** Of the router's own product in `route`. */
  readonly #ownLogits = new Workspace()
  #scratchBytes = { tokens: -1, bytes: 0 }
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
    const at = this.#at
    const count = this.#checkTokens(tokens)
    const logits = Tensor.empty([count, this.numExperts], { dtype: 'f32', ...at })
    try {
      this.#multiply(at, tokens, bufferOf(logits))
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
   * @throws TypeError, RangeError naming the argument; DisposedError; GraphCaptureError when it would have to allocate while the stream is
   * recorded: give `out`, and route as many tokens on that stream once before
   */
  route(tokens: Tensor | null, logits?: Tensor | null, options: RouteOptions = {}): RoutedTokens {
    this.#check()
    checkOptions('route options', options, ['ring', 'stream', 'out'])
    const at = placementOf(this.#at, options.stream)
    if (logits !== undefined && logits !== null) {
      const count = this.#checkLogits(logits, tokens)
      return this.#route(at, count, () => readOn(at.stream, logits), options)
    }
    if (tokens === null) throw new TypeError(`logits must be a Tensor where tokens is null, got ${logits}`)
    const count = this.#checkTokens(tokens)
    const product = (): BufferHandle => {
      const own = this.#ownLogits.take(at.stream, count * this.numExperts * Float32Array.BYTES_PER_ELEMENT)
      this.#multiply(at, tokens, own)
      return own
    }
    return this.#route(at, count, product, options)
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** Releases what the router made itself (biases from arrays, workspaces); tensors that it was given stay the caller's. */
  dispose(): void {
    this.#disposed = true
    this.#scratch.dispose()
    this.#ownLogits.dispose()
    for (const tensor of this.#owned) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('this Router was disposed')
  }

  /** The number of tokens whose product with the router's own weight is asked for. */
  #checkTokens(tokens: Tensor): number {
    const weight = this.#weight
    if (weight === null) throw new TypeError('weight is missing: a router made without it takes logits only')
    const dtype = weight.dtype === 'f32' ? (['f32', 'bf16', 'f16'] as const) : weight.dtype
    const shape = [null, sizeAt(weight, 1)]
    checkTensor('tokens', tokens, { dtype, device: this.#at.device, shape, names: ['tokens', 'inputDim'] })
    return sizeAt(tokens, 0)
  }

  #multiply({ stream }: Placement, tokens: Tensor, logits: BufferHandle): void {
    const weight = this.#weight
    if (weight === null) return
    const x = readOn(stream, tokens)
    const w = readOn(stream, weight)
    const bias = readOrNull(stream, this.#bias)
    call(() =>
      binding().routerKernels.routerLogits(
        streamOf(stream),
        x,
        dtypeCode[tokens.dtype],
        w,
        dtypeCode[weight.dtype],
        bias,
        sizeAt(tokens, 0),
        sizeAt(weight, 1),
        this.numExperts,
        logits,
      ),
    )
  }

  #checkLogits(logits: Tensor, tokens: Tensor | null): number {
    const rows = tokens === null ? null : sizeAt(checkTensor('tokens', tokens, { shape: [null, null] }), 0)
    const { device } = this.#at
    checkTensor('logits', logits, {
      dtype: 'f32',
      device,
      shape: [rows, this.numExperts],
      names: ['tokens', 'numExperts'],
    })
    return sizeAt(logits, 0)
  }

  #workspaceBytes(tokens: number): number {
    if (this.#scratchBytes.tokens !== tokens) {
      const device = deviceIndex(this.#at.device)
      const bytes = call((b) => b.routerKernels.routeWorkspaceBytes(device, this.#desc, tokens))
      this.#scratchBytes = { tokens, bytes }
    }
    return this.#scratchBytes.bytes
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

  #route(at: Placement, tokens: number, logits: () => BufferHandle, options: RouteOptions): RoutedTokens {
    const { device, stream } = at
    const { numExperts, topK } = this
    if (tokens * topK > maxSlots) throw new RangeError(`tokens × topK must be below 2^31, got ${tokens} × ${topK}`)
    const sizes = { tokens, topK, numExperts }
    const { ring } = options
    if (ring !== undefined && ring.numExperts !== numExperts) {
      countRingOf(ring)
      throw new RangeError(`ring must be of ${numExperts} experts, got one of ${ring.numExperts}`)
    }
    const counter = ring === undefined ? null : countRingOf(ring)
    if (options.out !== undefined) checkRoutedOut(options.out, sizes, device)
    const routed = options.out ?? emptyRouted(sizes, at)
    try {
      const scratch = this.#scratch.take(stream, this.#workspaceBytes(tokens))
      const input = logits()
      const selectBias = readOrNull(stream, this.#selectBias)
      const ids = writeOn(stream, routed.expertIds)
      const weights = writeOn(stream, routed.weights)
      const counts = writeOn(stream, routed.counts)
      const offsets = writeOn(stream, routed.offsets)
      const order = writeOn(stream, routed.order)
      call(() =>
        binding().routerKernels.route(
          streamOf(stream),
          this.#desc,
          input,
          selectBias,
          tokens,
          ids,
          weights,
          counts,
          offsets,
          order,
          scratch,
          counter,
        ),
      )
    } catch (error) {
      if (options.out === undefined) routed.dispose()
      throw error
    }
    return routed
  }
}
