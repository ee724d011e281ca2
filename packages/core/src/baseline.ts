/**
 * The textbook layer, as the yardstick: route, read the counts on the host, then loop over the experts: gather their tokens' rows, linear,
 * activation, linear, add the weighted rows to the output. The same primitives and weights as {@link MoELayer}, none of its fusion; and
 * the host waits for the counts in the middle of each step, as the textbook does.
 */
import { DisposedError, Event, requireOptions, Stream, type Tensor } from '@nexus/native'
import { type RoutedTokens, Router } from '@nexus/router-kernels'
import { routerDesc } from '@nexus/router-kernels/internal'
import { cast, expertMlp, gatherRows, indexAdd, Scratch, scaleRows, sharedGate } from './baseline-ops.js'
import {
  checkForwardOptions,
  checkInput,
  checkLogits,
  type ForwardOptions,
  type ForwardResult,
  inputTensor,
  outputTensor,
} from './inputs.js'
import type { MoELayer } from './layer.js'
import { checkSame, makeWeights, refuseOwnWeights } from './layer-parts.js'
import { type LayerConfig, type LayerOptions, layerOptionKeys, outputWidth, resolveOptions } from './options.js'
import { type LayerStats, StatsRecorder, stepStats } from './stats.js'
import { inRows } from './weight-layout.js'
import type { WeightSet } from './weights.js'

/** Options of {@link BaselineMoELayer.create}: those of a layer, or a layer whose weights to share. */
export type BaselineOptions =
  | (LayerOptions & { readonly weightsFrom?: MoELayer })
  | (Partial<LayerOptions> & {
      /**
       * Share this layer's weights and configuration; other options may repeat the layer's, and must then agree. Where its weights lie in
       * panels, the baseline has copies of them in rows.
       */
      readonly weightsFrom: MoELayer
    })

/** The textbook per-expert loop, with the interface of {@link MoELayer}. */
export class BaselineMoELayer {
  readonly config: LayerConfig
  readonly #stream: Stream
  readonly #weights: WeightSet
  readonly #router: Router
  readonly #stats: StatsRecorder
  #disposed = false

  private constructor(config: LayerConfig, stream: Stream, weights: WeightSet) {
    this.config = config
    this.#stream = stream
    this.#weights = weights
    const { router: weight, routerBias: bias, selectBias } = weights
    this.#router = new Router({ ...config.rule, weight, bias, selectBias, device: config.device, stream })
    this.#stats = new StatsRecorder(config.rule.numExperts)
  }

  /** @throws as {@link MoELayer.create}; RangeError where an option beside `weightsFrom` differs from the layer's */
  static async create(options: BaselineOptions): Promise<BaselineMoELayer> {
    requireOptions('BaselineMoELayer options', options, [...layerOptionKeys, 'weightsFrom'])
    const { weightsFrom, ...rest } = options
    if (weightsFrom === undefined) {
      const own = rest as LayerOptions // which the type says of options without `weightsFrom`
      const config = resolveOptions(own)
      const stream = own.stream ?? Stream.default(config.device)
      return BaselineMoELayer.#make(config, stream, await makeWeights(own, config, stream))
    }
    refuseOwnWeights(rest)
    const { weights, adoptWeights, ...others } = rest
    const { config } = weightsFrom
    checkAgreement(config, others)
    const stream = others.stream ?? Stream.default(config.device)
    // Its textbook operations want rows.
    return BaselineMoELayer.#make(config, stream, inRows(weightsFrom.weights, { config, stream }))
  }

  static #make(config: LayerConfig, stream: Stream, weights: WeightSet): BaselineMoELayer {
    try {
      return new BaselineMoELayer(config, stream, weights)
    } catch (error) {
      weights.release()
      throw error
    }
  }

  /** As {@link MoELayer.forward}. */
  async forward(x: Tensor | Float32Array, options: ForwardOptions = {}): Promise<ForwardResult> {
    if (this.#disposed) throw new DisposedError('this BaselineMoELayer was disposed')
    checkForwardOptions(options)
    const { logits = null, out, routing = false } = options
    const { config } = this
    const weights = this.#weights.retain()
    using scratch = new Scratch(this.#stream)
    let output: Tensor | null = null
    let routed: RoutedTokens | null = null
    try {
      const { x: input, temporary } = inputTensor(config, this.#stream, x)
      if (temporary !== null) scratch.keep(temporary)
      const tokens = checkInput(config, input)
      checkLogits(config, tokens, logits, weights.router !== null)
      output = outputTensor(config, this.#stream, tokens, out)
      this.#stats.queued(tokens)
      using timer = new Timer(this.#stream)
      routed = logits === null ? this.#router.route(input) : this.#router.route(null, logits)
      timer.mark()
      const offsets = await routed.offsets.toArray()
      const acc = this.#experts(scratch, weights, input, routed, offsets)
      timer.mark()
      this.#shared(scratch, weights, input, acc)
      timer.mark()
      cast(scratch, acc, output)
      timer.mark()
      await this.#stream.synchronize()
      const counts = Int32Array.from(
        { length: config.rule.numExperts },
        (_, e) => (offsets[e + 1] ?? 0) - (offsets[e] ?? 0),
      )
      const stats = stepStats(tokens, { counts, ...timer.read() })
      this.#stats.measured(stats)
      if (!routing) {
        routed.dispose()
        return { output, stats }
      }
      for (const tensor of [routed.counts, routed.offsets, routed.order]) tensor.dispose()
      return { output, stats, routing: { expertIds: routed.expertIds, weights: routed.weights } }
    } catch (error) {
      routed?.dispose()
      if (out === undefined) output?.dispose()
      throw error
    } finally {
      weights.release()
    }
  }

  /** The loop over the experts that have tokens; returns the float32 sums, laid out as the output. */
  #experts(s: Scratch, weights: WeightSet, x: Tensor, routed: RoutedTokens, offsets: ArrayLike<number>): Tensor {
    const { experts: mlp, combine, scaleInput } = this.config
    const { tokens, topK, order } = routed
    const acc = s.zeros([tokens, outputWidth(this.config)])
    const concat = combine === 'concat'
    const rowWeights = scaleInput ? s.ones([tokens, topK]) : routed.weights
    // Llama-4: every slot has a row of its own, its token's scaled by its weight.
    const everySlot = { order: scaleInput ? s.iota(tokens * topK) : order, first: 0, n: tokens * topK }
    const input = scaleInput ? scaleRows(s, mlp.dtype, gatherRows(s, mlp.dtype, x, everySlot, topK), routed.weights) : x
    for (let expert = 0; expert < mlp.numExperts; expert++) {
      const first = offsets[expert] ?? 0
      const n = (offsets[expert + 1] ?? 0) - first
      if (n === 0) continue
      // Each expert's rows go back at once, as they do in an eager framework.
      using own = new Scratch(s.stream)
      const bucket = { order, first, n }
      const gathered = gatherRows(own, mlp.dtype, input, bucket, scaleInput ? 1 : topK)
      const rows = expertMlp(own, mlp, expert, gathered, weights.experts, weights.expertBiases)
      indexAdd(own, mlp.dtype, rows, rowWeights, bucket, concat ? 1 : topK, acc)
    }
    return acc
  }

  #shared(s: Scratch, weights: WeightSet, x: Tensor, acc: Tensor): void {
    const { shared } = this.config
    const tokens = x.shape[0] ?? 0
    if (shared === null || tokens === 0) return
    const { dtype } = shared.mlp
    const rows = expertMlp(s, shared.mlp, 0, x, weights.shared, weights.sharedBiases)
    const scale = weights.sharedGate === null ? s.ones([tokens]) : sharedGate(s, dtype, x, weights.sharedGate)
    indexAdd(s, dtype, rows, scale, { order: s.iota(tokens), first: 0, n: tokens }, 1, acc)
  }

  /** The layer's life so far, as plain data. It names no variants, and holds no scratch memory between steps. */
  performanceStats(): LayerStats {
    if (this.#disposed) throw new DisposedError('this BaselineMoELayer was disposed')
    const { device, experts } = this.config
    const variants = { experts: [], shared: [] }
    return this.#stats.report({
      device,
      dtype: experts.dtype,
      variants,
      tuning: null,
      weightLayout: 'rows',
      weightBytes: this.#weights.bytes,
      workspaceBytes: 0,
    })
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** Releases the weights unless another layer still uses them. Steps in flight run to their end. Twice is fine. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#router.dispose()
    this.#weights.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose()
    await this.#stream.synchronize()
  }
}

/** Device time between marks. */
class Timer {
  readonly #stream: Stream
  readonly #events: Event[] = []

  constructor(stream: Stream) {
    this.#stream = stream
    this.mark()
  }

  mark(): void {
    const event = Event.create(this.#stream.device)
    this.#events.push(event)
    event.record(this.#stream)
  }

  /** Once the stream has passed the last mark. */
  read() {
    const between = (from: number, to: number): number => {
      const [start, end] = [this.#events[from], this.#events[to]]
      if (start === undefined || end === undefined) throw new RangeError(`expected marks ${from} and ${to}`)
      return start.elapsedMs(end)
    }
    return {
      routerMs: between(0, 1),
      expertsMs: between(1, 2),
      sharedMs: between(2, 3),
      combineMs: between(3, 4),
      totalMs: between(0, 4),
    }
  }

  [Symbol.dispose](): void {
    for (const event of this.#events) event.dispose()
  }
}

/** Options that repeat a layer's must say the same. */
function checkAgreement(config: LayerConfig, others: Partial<LayerOptions>): void {
  const { experts, shared, seed, device, rule } = config
  const own: LayerOptions = {
    ...experts,
    topK: rule.topK,
    bias: config.bias,
    router: rule,
    scaleInput: config.scaleInput,
    combine: config.combine,
    shared: shared && { hiddenDim: shared.mlp.hiddenDim, gate: shared.gate, bias: shared.bias },
    device,
    seed,
  }
  const { stream, ...repeated } = others
  const merged = resolveOptions({ ...own, ...repeated })
  if (stream !== undefined && stream.device !== device) {
    throw new RangeError(`stream must be on device ${device}, got a stream on ${stream.device}`)
  }
  // Rules are equal when their descriptors are: a default may be spelt out or not.
  // A layer's determinism is about its kernels: the baseline launches expert by expert and has none of it.
  const plain = ({ deterministic, ...c }: LayerConfig) => ({ ...c, rule: routerDesc(c.rule) })
  const expected = plain(config)
  checkSame(expected, plain(merged), Object.keys(expected) as (keyof typeof expected)[])
}
