/**
 * The layer: router, experts, shared expert and combine as one native call a step. Its steps run in the order in which they were queued, and
 * nothing on that path waits for the host: counts and times come back behind the step.
 */
import { checkOptions, type DeviceName, DisposedError, Stream, Tensor } from '@nexus/native'
import type { FloatDType } from '@nexus/router-kernels'
import { combineModes, mlpDesc, routerDesc } from '@nexus/router-kernels/internal'
import type { FromCheckpointOptions } from './checkpoint/from-checkpoint.js'
import {
  checkForwardOptions,
  checkInput,
  checkLogits,
  type EnqueueOptions,
  type ForwardOptions,
  type ForwardResult,
  inputTensor,
  outputTensor,
} from './inputs.js'
import {
  binding,
  bufferOf,
  call,
  callAsync,
  deviceIndex,
  dtypeCode,
  type LayerHandle,
  type RawLayerDesc,
  type RawLayerWeights,
  readOn,
  readOrNull,
  streamOf,
  writeOn,
} from './native.js'
import { type LayerConfig, type MoELayerOptions, outputWidth, resolveOptions } from './options.js'
import { type LayerStats, StatsRecorder, stepStats } from './stats.js'
import { givenWeights, randomWeights, type WeightSet } from './weights.js'

function layerDesc({ rule, scaleInput, experts, combine, shared }: LayerConfig, weights: WeightSet): RawLayerDesc {
  return {
    router: routerDesc(rule),
    routerDtype: dtypeCode[weights.router?.dtype ?? 'f32'],
    scaleInput,
    experts: mlpDesc(experts),
    combine: combineModes.indexOf(combine),
    shared: shared === null ? null : mlpDesc(shared.mlp),
    sharedGate: shared?.gate ?? false,
  }
}

/** The buffers, each ordered on the layer's stream behind whatever filled it. */
function layerWeights(stream: Stream, weights: WeightSet): RawLayerWeights {
  const of = (tensor: Tensor | null) => readOrNull(stream, tensor)
  return {
    routerWeight: of(weights.router),
    routerBias: of(weights.routerBias),
    selectBias: of(weights.selectBias),
    expertWeight: weights.experts.map(of),
    expertBias: weights.expertBiases.map(of),
    sharedWeight: weights.shared.map(of),
    sharedBias: weights.sharedBiases.map(of),
    sharedGate: of(weights.sharedGate),
  }
}

/** Weights by the options: given and converted, or random. Shared with the baseline. */
export async function makeWeights(options: MoELayerOptions, config: LayerConfig, stream: Stream): Promise<WeightSet> {
  if (!options.weights) return randomWeights({ config, stream })
  const { weights, adoptWeights: adopt = false, bias: biasAsked = false } = options
  return givenWeights({ config, stream }, weights, { adopt, biasAsked })
}

/**
 * A Mixture-of-Experts layer on one device.
 *
 * @example
 * await using layer = await MoELayer.create({ inputDim: 512, hiddenDim: 2048, numExperts: 16, topK: 2 })
 * const { output, stats } = await layer.forward(x)
 */
export class MoELayer {
  /** The checked configuration, every default filled in. */
  readonly config: LayerConfig
  /** @internal */
  readonly weights: WeightSet
  readonly #stream: Stream
  readonly #handle: LayerHandle
  readonly #stats: StatsRecorder
  readonly #inFlight = new Set<Promise<unknown>>()
  #disposed = false

  private constructor(config: LayerConfig, stream: Stream, weights: WeightSet, handle: LayerHandle) {
    this.config = config
    this.weights = weights
    this.#stream = stream
    this.#handle = handle
    this.#stats = new StatsRecorder(config.rule.numExperts)
  }

  /**
   * @throws TypeError or RangeError naming the option; UnsupportedError when the device cannot be used; OutOfMemoryError when the
   * weights do not fit
   */
  static async create(options: MoELayerOptions): Promise<MoELayer> {
    const config = resolveOptions(options)
    const stream = options.stream ?? Stream.default(config.device)
    const weights = await makeWeights(options, config, stream)
    try {
      const desc = layerDesc(config, weights)
      const raw = layerWeights(stream, weights)
      const handle = call(() => binding().core.layerCreate(deviceIndex(config.device), desc, raw))
      return new MoELayer(config, stream, weights, handle)
    } catch (error) {
      weights.release()
      throw error
    }
  }

  /**
   * The MoE layer of a Hugging Face checkpoint directory: `config.json` and its `*.safetensors`.
   * @throws CheckpointError naming file and tensor
   */
  static async fromCheckpoint(directory: string, options?: FromCheckpointOptions): Promise<MoELayer> {
    const { fromCheckpoint } = await import('./checkpoint/from-checkpoint.js')
    return fromCheckpoint(directory, options)
  }

  get device(): DeviceName {
    return this.config.device
  }

  get dtype(): FloatDType {
    return this.config.experts.dtype
  }

  /** Columns of the output: outputDim, or topK·outputDim with 'concat'. */
  get outputWidth(): number {
    return outputWidth(this.config)
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /**
   * One step, with its counts and times when the device has finished it. Calls may overlap: they run in the order in which they were made.
   * @param x [tokens, inputDim] of the layer's dtype and device, or as many float32 values, which are copied at once and converted
   */
  async forward(x: Tensor | Float32Array, options: ForwardOptions = {}): Promise<ForwardResult> {
    this.#check()
    checkForwardOptions(options)
    const { logits = null, out, routing = false } = options
    const { config } = this
    const { x: input, temporary } = inputTensor(config, this.#stream, x)
    const made: Tensor[] = []
    const make = (tensor: Tensor): Tensor => {
      made.push(tensor)
      return tensor
    }
    try {
      const tokens = checkInput(config, input)
      checkLogits(config, tokens, logits, this.weights.router !== null)
      const output = outputTensor(config, this.#stream, tokens, out)
      if (out === undefined) make(output)
      const shape = [tokens, config.rule.topK]
      const on = { device: config.device, stream: this.#stream }
      const expertIds = routing ? make(Tensor.empty(shape, { dtype: 'i32', ...on })) : null
      const weights = routing ? make(Tensor.empty(shape, { dtype: 'f32', ...on })) : null
      // What is refused throws here, and the step does not count; what fails on the device rejects.
      const queued = call(() =>
        binding().core.layerForward(
          this.#handle,
          streamOf(this.#stream),
          readOn(this.#stream, input, 'x'),
          tokens,
          readOrNull(this.#stream, logits, 'logits'),
          writeOn(this.#stream, output, 'out'),
          expertIds && bufferOf(expertIds),
          weights && bufferOf(weights),
        ),
      )
      this.#stats.queued(tokens)
      const step = callAsync(() => queued)
      this.#track(step)
      temporary?.dispose()
      const stats = stepStats(tokens, await step)
      this.#stats.measured(stats)
      return expertIds && weights ? { output, stats, routing: { expertIds, weights } } : { output, stats }
    } catch (error) {
      for (const tensor of made) tensor.dispose()
      throw error
    } finally {
      temporary?.dispose()
    }
  }

  /**
   * One step in stream order: no promise, nothing measured. The result may be handed on at once; reading it on the host waits for it.
   * @param x [tokens, inputDim] of the layer's dtype and device
   * @returns the output; the caller disposes of it
   */
  enqueue(x: Tensor, options: EnqueueOptions = {}): Tensor {
    this.#check()
    checkOptions('enqueue options', options, ['logits', 'out'])
    const { logits = null, out } = options
    const { config } = this
    const tokens = checkInput(config, x)
    checkLogits(config, tokens, logits, this.weights.router !== null)
    const output = outputTensor(config, this.#stream, tokens, out)
    try {
      const on = streamOf(this.#stream)
      const input = readOn(this.#stream, x, 'x')
      const given = readOrNull(this.#stream, logits, 'logits')
      const into = writeOn(this.#stream, output, 'out')
      call(() => binding().core.layerEnqueue(this.#handle, on, input, tokens, given, into))
    } catch (error) {
      if (out === undefined) output.dispose()
      throw error
    }
    this.#stats.queued(tokens)
    return output
  }

  /** The layer's life so far, as plain data. */
  performanceStats(): LayerStats {
    this.#check()
    const { experts, shared, device, rule } = this.config
    const tokens = this.#stats.lastTokens
    const variants = { experts: [] as string[], shared: [] as string[] }
    if (tokens !== null) {
      const name = (mlp: typeof experts, rows: number) => (_: Tensor, layer: number) =>
        call(() => binding().routerKernels.variant(deviceIndex(device), mlpDesc(mlp), layer, rows))
      variants.experts = this.weights.experts.map(name(experts, tokens * rule.topK))
      if (shared !== null) variants.shared = this.weights.shared.map(name(shared.mlp, tokens))
    }
    return this.#stats.report({
      device,
      dtype: experts.dtype,
      variants,
      weightBytes: call(() => binding().core.layerWeightBytes(this.#handle)),
      workspaceBytes: call(() => binding().core.layerWorkspaceBytes(this.#handle)),
    })
  }

  /** Releases weights and scratch memory. Steps that are queued still run to their end. Twice is fine. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    call(() => binding().native.release(this.#handle))
    this.weights.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** Disposes, and waits for the forwards in flight. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose()
    await Promise.allSettled(this.#inFlight)
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('this MoELayer was disposed')
  }

  #track(step: Promise<unknown>): void {
    this.#inFlight.add(step)
    const done = (): void => {
      this.#inFlight.delete(step)
    }
    step.then(done, done)
  }
}
