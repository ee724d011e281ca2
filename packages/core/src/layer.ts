/**
 * The layer: router, experts, shared expert and combine as one native call a step. Its steps run in the order in which they were queued,
 * whatever their streams, and nothing on that path waits for the host: counts and times come back behind the step. How the experts are
 * run is the step runner's matter, where any scheduling is on; without it there is none.
 */
import { tokenBucket } from '@nexus/graphs'
import { DeviceError, type DeviceName, DisposedError, Event, GraphCaptureError, Stream, Tensor } from '@nexus/native'
import type { FloatDType } from '@nexus/router-kernels'
import { mlpDesc } from '@nexus/router-kernels/internal'
import { tenant } from '@nexus/streams'
import type { FromCheckpointOptions } from './checkpoint/from-checkpoint.js'
import {
  checkEnqueueOptions,
  checkForwardOptions,
  checkInput,
  checkLogits,
  type EnqueueOptions,
  type ForwardOptions,
  type ForwardResult,
  inputTensor,
  outputTensor,
} from './inputs.js'
import { checkShared, layerDesc, layerWeights, makeWeights } from './layer-parts.js'
import {
  binding,
  bufferOf,
  call,
  callAsync,
  captureOn,
  deviceIndex,
  type LayerHandle,
  readOn,
  readOrNull,
  streamOf,
  writeOn,
} from './native.js'
import { type LayerConfig, type MoELayerOptions, outputWidth, resolveOptions } from './options.js'
import type { LaneTrace } from './scheduling/exec.js'
import { resolveScheduling } from './scheduling/options.js'
import { plainPlan, type StepPlan } from './scheduling/plan.js'
import { type QueuedStep, type StepArgs, StepRunner } from './scheduling/runner.js'
import { noScheduling, schedulingStats } from './scheduling/stats.js'
import { type LayerStats, StatsRecorder, stepStats } from './stats.js'
import { type TuningInForce, tuningFor } from './tuning/in-force.js'
import { layWeights } from './weight-layout.js'
import type { WeightSet } from './weights.js'

/**
 * A Mixture-of-Experts layer on one device.
 *
 * @example
 * await using layer = await MoELayer.create({ inputDim: 512, hiddenDim: 2048, numExperts: 16, topK: 2 })
 * const { output, stats } = await layer.forward(x)
 *
 * @example
 * await using layer = await MoELayer.create({ inputDim: 512, hiddenDim: 2048, numExperts: 16, topK: 2, slices: true, graphs: true })
 * layer.plan.reason
 */
export class MoELayer {
  /** The checked configuration, every default filled in. */
  readonly config: LayerConfig
  /** @internal */
  readonly weights: WeightSet
  readonly #stream: Stream
  readonly #handle: LayerHandle
  readonly #stats: StatsRecorder
  readonly #runner: StepRunner | null
  readonly #tuning: TuningInForce
  readonly #inFlight = new Set<Promise<unknown>>()
  /** Streams other than the layer's own that wait for its weights already. */
  readonly #placed = new WeakSet<Stream>()
  /** What the device failed with: nothing that comes after can be trusted. */
  #failure: DeviceError | null = null
  #disposed = false

  private constructor(
    config: LayerConfig,
    stream: Stream,
    weights: WeightSet,
    handle: LayerHandle,
    runner: StepRunner | null,
    tuning: TuningInForce,
  ) {
    this.config = config
    this.weights = weights
    this.#stream = stream
    this.#handle = handle
    this.#runner = runner
    this.#tuning = tuning
    this.#stats = new StatsRecorder(config.rule.numExperts)
  }

  /**
   * @throws TypeError or RangeError naming the option; UnsupportedError when the device cannot be used, or not be cut into slices that were
   * insisted on; OutOfMemoryError when the weights do not fit; SliceAllocationError when the slices do not; TuneFileError when the
   * machine's tune file is not one
   */
  static async create(options: MoELayerOptions): Promise<MoELayer> {
    const config = resolveOptions(options)
    const scheduling = resolveScheduling(options)
    const stream = options.stream ?? Stream.default(config.device)
    const weights = await layerWeightSet(options, config, stream)
    let handle: LayerHandle | null = null
    try {
      const tuning = tuningFor(config.device)
      const desc = layerDesc(config, weights)
      const raw = layerWeights(stream, weights)
      handle = call(() => binding().core.layerCreate(deviceIndex(config.device), desc, raw))
      const runner = scheduling && new StepRunner(scheduling, config, handle, stream)
      return new MoELayer(config, stream, weights, handle, runner, tuning)
    } catch (error) {
      if (handle !== null) binding().native.release(handle)
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

  /** How the steps are run from now on, and why. */
  get plan(): StepPlan {
    return this.#runner?.control.plan ?? plainPlan
  }

  /**
   * One step, with its counts and times when the device has finished it. Calls may overlap: they run in the order in which they were made.
   * @param x [tokens, inputDim] of the layer's dtype and device, or as many float32 values, which are copied at once and converted
   * @throws GraphCaptureError while the stream is being recorded: counts and times are those of a run; `enqueue` can be recorded
   */
  async forward(x: Tensor | Float32Array, options: ForwardOptions = {}): Promise<ForwardResult> {
    this.#check()
    checkForwardOptions(options)
    const { logits = null, out, routing = false, stream = this.#stream } = options
    const { config } = this
    streamOf(stream)
    if (captureOn(stream) !== null) {
      throw new GraphCaptureError(
        'stream: is being recorded, and forward gives the counts and times of a run; use enqueue',
      )
    }
    this.#checkStream(stream)
    const { x: input, temporary } = inputTensor(config, stream, x)
    const made: Tensor[] = []
    const make = (tensor: Tensor): Tensor => {
      made.push(tensor)
      return tensor
    }
    try {
      const tokens = checkInput(config, input)
      checkLogits(config, tokens, logits, this.weights.router !== null)
      const output = outputTensor(config, stream, tokens, out)
      if (out === undefined) make(output)
      const shape = [tokens, config.rule.topK]
      const on = { device: config.device, stream }
      const expertIds = routing ? make(Tensor.empty(shape, { dtype: 'i32', ...on })) : null
      const weights = routing ? make(Tensor.empty(shape, { dtype: 'f32', ...on })) : null
      // What is refused throws here, and the step does not count; what fails on the device rejects.
      const queued = this.#queue(stream, tokens, {
        x: readOn(stream, input, 'x'),
        tokens,
        logits: readOrNull(stream, logits, 'logits'),
        out: writeOn(stream, output, 'out'),
        ids: expertIds && bufferOf(expertIds),
        weights: weights && bufferOf(weights),
        measured: true,
      })
      const step = callAsync(() => queued.stats ?? Promise.reject(new TypeError('the addon returned no statistics')))
      this.#track(step)
      temporary?.dispose()
      const stats = stepStats(tokens, await step.catch((error: unknown) => this.#lost(stream, error)))
      this.#stats.measured(stats)
      this.#runner?.control.observe(queued.strategy, stats.counts, stats.times.totalMs)
      return expertIds && weights ? { output, stats, routing: { expertIds, weights } } : { output, stats }
    } catch (error) {
      for (const tensor of made) tensor.dispose()
      throw this.#failed(error)
    } finally {
      temporary?.dispose()
    }
  }

  /**
   * One step in stream order: no promise, nothing measured. The result may be handed on at once; reading it on the host waits for it.
   *
   * On a stream that is being recorded (`Graph.capture`) it becomes part of that graph as it is now: this number of tokens, these tensors, the plan that
   * holds and where it has the experts. `out` has to be given then. Any number of steps, of any layers, make one graph. It holds the weights,
   * and scratch memory of its own, until it is disposed of: the layer may go before it, and its launches need no order with other steps.
   *
   * @param x [tokens, inputDim] of the layer's dtype and device
   * @returns the output; the caller disposes of it
   *
   * @example
   * using graph = Graph.capture(stream, () => {
   *   first.enqueue(x, { out: h, stream })
   *   second.enqueue(h, { out: y, stream })
   * })
   * graph.launch()
   */
  enqueue(x: Tensor, options: EnqueueOptions = {}): Tensor {
    this.#check()
    checkEnqueueOptions(options)
    const { logits = null, out, stream = this.#stream } = options
    const { config } = this
    if (stream !== this.#stream) this.#checkStream(stream)
    captureOn(stream)?.reads(this, (launched) => this.#behindWeights(launched))
    const tokens = checkInput(config, x)
    checkLogits(config, tokens, logits, this.weights.router !== null)
    const output = outputTensor(config, stream, tokens, out)
    try {
      const input = readOn(stream, x, 'x')
      const given = readOrNull(stream, logits, 'logits')
      const into = writeOn(stream, output, 'out')
      const runner = this.#runner
      if (runner === null) {
        const on = streamOf(stream)
        call(({ core }) => core.layerEnqueue(this.#handle, on, input, tokens, given, into, null, null))
        this.#count(stream, tokens)
      } else {
        this.#queue(stream, tokens, {
          x: input,
          tokens,
          logits: given,
          out: into,
          ids: null,
          weights: null,
          measured: false,
        })
      }
    } catch (error) {
      if (out === undefined) output.dispose()
      throw this.#failed(error)
    }
    return output
  }

  /**
   * One step as a tenant of a schedule: `enqueue` on the schedule's stream, which may be a slice's. Steps of one layer keep their order
   * on whatever streams they run.
   */
  [tenant](stream: Stream, x: Tensor, options: Omit<EnqueueOptions, 'stream'> = {}): Tensor {
    return this.enqueue(x, { ...options, stream })
  }

  /**
   * The SMs (CPU: virtual workers) on which each lane's experts were computed since the last call, or since the plan that is in use was
   * taken up, whichever is later; behind all steps queued so far.
   * @throws RangeError when the layer was made without `trace: true`
   */
  async trace(): Promise<LaneTrace> {
    this.#check()
    if (this.#runner === null) throw new RangeError('trace: expected a layer made with trace: true')
    return this.#runner.trace()
  }

  /** The layer's life so far, as plain data. */
  performanceStats(): LayerStats {
    this.#check()
    const { experts, shared, device, rule } = this.config
    const tokens = this.#stats.lastTokens
    const variants = { experts: [] as string[], shared: [] as string[] }
    if (tokens !== null) {
      const name = (mlp: typeof experts, rows: number) => (_: Tensor, layer: number) =>
        call(() => binding().routerKernels.variant(deviceIndex(device), mlpDesc(mlp), layer, rows, this.#handle))
      // A step's variants are those of its token bucket, so that they do not depend on how it is run.
      const bucket = tokenBucket(tokens)
      variants.experts = this.weights.experts.map(name(experts, bucket * rule.topK))
      if (shared !== null) variants.shared = this.weights.shared.map(name(shared.mlp, bucket))
    }
    return this.#stats.report({
      device,
      dtype: experts.dtype,
      variants,
      tuning: this.#tuning,
      weightLayout: this.weights.inPanels.experts ? 'panels' : 'rows',
      weightBytes: call(() => binding().core.layerWeightBytes(this.#handle)),
      workspaceBytes: call(() => binding().core.layerWorkspaceBytes(this.#handle)),
      ...(this.#runner === null ? noScheduling : schedulingStats(this.#runner, this.#stats.tokens)),
    })
  }

  /** Releases weights and scratch memory. Steps that are queued still run to their end. Twice is fine. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#runner?.dispose()
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
    if (this.#failure === null) return
    const { message, nativeError } = this.#failure
    throw new DeviceError(`this MoELayer is dead, its device has failed: ${message}`, {
      cause: this.#failure,
      nativeError,
    })
  }

  #checkStream(stream: Stream): void {
    streamOf(stream)
    if (stream === this.#stream || this.#placed.has(stream)) return
    const { device } = this.config
    if (stream.device !== device) {
      throw new RangeError(`stream: expected a stream on device ${device}, got one on ${stream.device}`)
    }
    // A graph is ordered where it is launched.
    if (captureOn(stream) === null) this.#behindWeights(stream)
  }

  /** Another stream than the layer's own is ordered behind the weights when it is used for the first time. */
  #behindWeights(stream: Stream): void {
    if (stream === this.#stream || this.#placed.has(stream)) return
    const made = Stream.successor(this.#stream)
    if (made !== stream) {
      using written = Event.create(this.config.device)
      written.record(made)
      stream.wait(written)
    }
    this.#placed.add(stream)
  }

  #count(stream: Stream, tokens: number): void {
    if (captureOn(stream) === null) this.#stats.queued(tokens)
    else this.#stats.recorded(tokens)
  }

  /** One step with what the runner decides, or without a runner as it is. */
  #queue(stream: Stream, tokens: number, args: StepArgs): QueuedStep {
    const runner = this.#runner
    const queued = call(({ core }): QueuedStep => {
      if (runner !== null) return runner.run(stream, args)
      const { x, logits, out, ids, weights } = args
      const on = streamOf(stream)
      const stats = core.layerForward(this.#handle, on, x, tokens, logits, out, ids, weights, null, null)
      return { strategy: 'fused', stats }
    })
    this.#count(stream, tokens)
    return queued
  }

  /** A device error is the layer's end: what the device holds is not known any more. */
  #failed(error: unknown): unknown {
    const beneath = error instanceof Error ? error.cause : undefined
    if (error instanceof DeviceError) this.#failure ??= error
    else if (beneath instanceof DeviceError) this.#failure ??= beneath
    return error
  }

  /** A step that was queued has failed: on the CPU that is the end of its stream, and of a layer whose own it is. */
  #lost(stream: Stream, error: unknown): never {
    if (stream === this.#stream && !(error instanceof DeviceError)) {
      const message = error instanceof Error ? error.message : String(error)
      this.#failure ??= new DeviceError(`work on its stream has failed: ${message}`, { cause: error })
    }
    throw error
  }

  #track(step: Promise<unknown>): void {
    this.#inFlight.add(step)
    const done = (): void => {
      this.#inFlight.delete(step)
    }
    step.then(done, done)
  }
}

/** Another layer's weights, or a layer's own, laid as the device's kernels want them. */
async function layerWeightSet(options: MoELayerOptions, config: LayerConfig, stream: Stream): Promise<WeightSet> {
  const { weightsFrom, weightLayout = 'auto' } = options
  if (weightsFrom !== undefined) {
    checkShared(options, config, weightsFrom)
    return weightsFrom.weights.retain()
  }
  const weights = await makeWeights(options, config, stream)
  try {
    layWeights(weights, { config, stream }, weightLayout)
    return weights
  } catch (error) {
    weights.release()
    throw error
  }
}
