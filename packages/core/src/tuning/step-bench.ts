/**
 * Whole steps of the layer on the device, as its graphs run them: router, experts, shared expert and combine, one behind the other. Each is a
 * step of a real layer, made with the choices that are to be timed in force; layers share the weights, and steps go over copies of them and
 * over several inputs.
 */
import { type DeviceName, NexusError, Tensor } from '@nexus/native'
import { mlpDesc } from '@nexus/router-kernels/internal'
import { layerDesc, layerWeights } from '../layer-parts.js'
import { binding, bufferOf, call, deviceIndex, type LayerHandle, streamOf } from '../native.js'
import { type LayerConfig, outputWidth } from '../options.js'
import type { WeightSet } from '../weights.js'
import { inputsFor, type Site, skewSeed } from './cell.js'
import { tuneDevice, withChoices } from './in-force.js'
import type { LinearSpec } from './linears.js'
import { expertBiases } from './routing.js'
import { type LoadName, launchCount, type Series, StreamTimer } from './series.js'

/** Scratch memory that the recorded steps of all series may have together: each layer in a graph has its own. */
const mostScratchBytes = 2 ** 30

/** The variant of a linear layer in a step. */
export interface Choice {
  readonly linear: LinearSpec
  readonly variant: string
}

/** What a series of steps is laid out by. */
export interface StepSize {
  /** Microseconds, roughly. */
  readonly us: number
  /** Scratch memory of a layer. */
  readonly scratchBytes: number
}

export class StepBench {
  readonly #config: LayerConfig
  readonly #site: Site
  readonly #deviceClass: string
  readonly #tokens: number
  readonly #biases: Readonly<Record<LoadName, Float32Array>>
  readonly #inputs: readonly Tensor[]
  readonly #output: Tensor
  readonly #timer: StreamTimer
  readonly #owned: (Tensor | StreamTimer)[] = []

  constructor(config: LayerConfig, tokens: number, site: Site) {
    // A batch-invariant layer leaves out what is not of its order.
    this.#config = { ...config, deterministic: 'run-to-run' }
    this.#site = site
    this.#tokens = tokens
    const { experts, rule } = config
    const { device, stream, skew, seed } = site
    this.#deviceClass = tuneDevice(device).deviceClass
    // The product of unit-normal tokens with the router's weights is unit-normal: these make it the loads that cells have.
    this.#biases = {
      even: new Float32Array(rule.numExperts),
      skewed: expertBiases(rule.numExperts, skew, skewSeed(seed, tokens)),
    }
    const own = <T extends Tensor | StreamTimer>(made: T): T => {
      this.#owned.push(made)
      return made
    }
    try {
      const on = { dtype: experts.dtype, device, stream }
      this.#inputs = Array.from({ length: inputsFor(tokens) }, (_, i) =>
        own(Tensor.randn([tokens, experts.inputDim], { ...on, seed: seed + i })),
      )
      this.#output = own(Tensor.empty([tokens, outputWidth(config)], on))
      this.#timer = own(new StreamTimer(device, stream))
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** From now on the router gives the experts this load. */
  async load(name: LoadName): Promise<void> {
    await this.#site.weights.routerBias.write(this.#biases[name])
  }

  /** By one eager step: the second of two, the first of which loads kernels, which a recording could not. */
  async estimate(choices: readonly Choice[]): Promise<StepSize> {
    const [set] = this.#site.weights.sets
    if (set === undefined) throw new RangeError('weights: expected at least one set')
    return this.#withLayers([set], choices, async ([layer]) => {
      const step = (i: number) => layer !== undefined && this.#enqueue(layer, i)
      step(0)
      const us = await this.#timer.us(() => step(1))
      const scratchBytes = call((b) => (layer === undefined ? 0 : b.core.layerWorkspaceBytes(layer)))
      return { us, scratchBytes }
    })
  }

  /**
   * A recorded series of steps, by the load of the time when it is run.
   * @param among how many series there will be
   */
  series(choices: readonly Choice[], { us, scratchBytes }: StepSize, among: number): Promise<Series> {
    const { sets } = this.#site.weights
    const affordable = Math.max(1, Math.floor(mostScratchBytes / (among * Math.max(1, scratchBytes))))
    const rotation = Math.min(sets.length, affordable)
    const launches = launchCount(Math.max(rotation, this.#inputs.length), us)
    const used = sets.slice(0, Math.min(rotation, launches))
    return this.#withLayers(used, choices, async (layers) =>
      this.#timer.series(launches, (i) => {
        const layer = layers[i % layers.length]
        if (layer !== undefined) this.#enqueue(layer, i)
      }),
    )
  }

  [Symbol.dispose](): void {
    for (const made of this.#owned) made.dispose()
  }

  /** Layers with these choices for the time of `use`; what was recorded holds what it needs of them. */
  async #withLayers<T>(
    sets: readonly WeightSet[],
    choices: readonly Choice[],
    use: (layers: readonly LayerHandle[]) => Promise<T>,
  ): Promise<T> {
    const { stream, device } = this.#site
    const linears = choices.map(({ linear, variant }) => ({
      ...linear,
      order: null,
      rows: [{ rows: this.#tokens * linear.rowsPerToken, variants: [variant] }],
    }))
    const made: LayerHandle[] = []
    try {
      withChoices(this.#deviceClass, linears, () => {
        for (const set of sets) made.push(layerOf(this.#config, device, set, layerWeights(stream, set)))
      })
      for (const choice of choices) this.#checkRuns(made[0], choice)
      return await use(made)
    } finally {
      for (const layer of made) binding().native.release(layer)
    }
  }

  /** What would be timed is what was meant. */
  #checkRuns(layer: LayerHandle | undefined, { linear, variant }: Choice): void {
    const { experts, shared } = this.#config
    const mlp = mlpDesc(linear.mlp === 'shared' && shared !== null ? shared.mlp : experts)
    const rows = this.#tokens * linear.rowsPerToken
    const device = deviceIndex(this.#site.device)
    const runs = call((b) => b.routerKernels.variant(device, mlp, linear.index, rows, layer))
    if (runs === variant) return
    throw new NexusError(
      'ERR_NEXUS_INTERNAL',
      `a step with ${variant} as ${linear.name} at ${rows} rows was asked for, and it has ${runs}`,
    )
  }

  #enqueue(layer: LayerHandle, i: number): void {
    const input = this.#inputs[i % this.#inputs.length]
    if (input === undefined) throw new RangeError('inputs: expected at least one')
    const [stream, x, out] = [streamOf(this.#site.stream), bufferOf(input), bufferOf(this.#output)]
    call((b) => b.core.layerEnqueue(layer, stream, x, this.#tokens, null, out, null, null))
  }
}

const layerOf = (
  config: LayerConfig,
  device: DeviceName,
  set: WeightSet,
  raw: ReturnType<typeof layerWeights>,
): LayerHandle => call((b) => b.core.layerCreate(deviceIndex(device), layerDesc(config, set), raw))
