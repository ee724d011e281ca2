/**
 * The experts' MLPs as grouped launches: each token's row goes through the MLP of the expert that it was routed to, all experts in one
 * launch per linear layer, the buckets read on the device.
 */
import {
  checkInteger,
  checkOptions,
  type DeviceSpec,
  DisposedError,
  describe,
  requireOptions,
  type Stream,
  Tensor,
} from '@nexus/native'
import { checkTensor } from './check.js'
import {
  type Activation,
  checkMlpSpec,
  defaultActivation,
  type FloatDType,
  linearShapes,
  type MlpKind,
  type MlpSpec,
  mlpDesc,
} from './mlp-options.js'
import type { RawMlpDesc } from './native.js'
import {
  binding,
  bufferOf,
  call,
  deviceIndex,
  type Placement,
  placement,
  readOn,
  readOrNull,
  withScratch,
} from './native.js'
import { checkRouted, type RoutedTokens } from './routed-tokens.js'
import { maxExperts } from './router-options.js'

/** The shape and rule of a group of expert MLPs. */
export interface ExpertsShape {
  readonly kind: MlpKind
  /** @default by kind: 'silu' for two-layer, 'relu' for three-layer, 'swiglu' for gated */
  readonly activation?: Activation
  /** Clamp of 'clamped-swiglu'. @default 7 */
  readonly limit?: number
  /** Slope of 'clamped-swiglu'. @default 1.702 */
  readonly alpha?: number
  /** 1 to 1024. */
  readonly numExperts: number
  readonly inputDim: number
  /** Inner width; of a gated MLP the width after the gate. */
  readonly hiddenDim: number
  readonly outputDim: number
  /** Of tokens, weights and output; sums are float32. 'i32' is refused. */
  readonly dtype: FloatDType
  /** @default the device of the weights, else 'auto' */
  readonly device?: DeviceSpec
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** Options of {@link GroupedExperts}. */
export interface GroupedExpertsOptions extends ExpertsShape {
  /**
   * One tensor per linear layer, [numExperts, rows, columns] as torch's Linear has it. The first one of a gated MLP is
   * [numExperts, 2·hiddenDim, inputDim] with gate i in row 2i and up i in row 2i + 1. The caller keeps them and disposes of them.
   */
  readonly weights: readonly Tensor[]
  /** One f32 tensor [numExperts, rows] or `null` per linear layer. @default no biases */
  readonly biases?: readonly (Tensor | null)[]
}

/** Options of {@link GroupedExperts.random}. */
export interface RandomExpertsOptions extends ExpertsShape {
  /** @default false */
  readonly bias?: boolean
  /** 0 to 2^32 - 1: the same seed gives the same bits on every device. @default 0 */
  readonly seed?: number
}

/** Options of {@link GroupedExperts.forward}. */
export interface ExpertsForwardOptions {
  /** f32 [tokens, topK]: scales each slot's input (Llama-4). @default null */
  readonly inputScale?: Tensor | null
}

const shapeKeys = [
  'kind',
  'activation',
  'limit',
  'alpha',
  'numExperts',
  'inputDim',
  'hiddenDim',
  'outputDim',
  'dtype',
  'device',
  'stream',
]

function specOf(options: ExpertsShape): MlpSpec {
  const { kind, numExperts, inputDim, hiddenDim, outputDim, dtype, limit = 7, alpha = 1.702 } = options
  checkInteger('numExperts', numExperts, 1, maxExperts)
  const activation = options.activation ?? defaultActivation[kind]
  return checkMlpSpec({ kind, activation, limit, alpha, numExperts, inputDim, hiddenDim, outputDim, dtype })
}

/** Expert MLPs on one device. */
export class GroupedExperts {
  readonly spec: MlpSpec
  readonly #at: Placement
  readonly #desc: RawMlpDesc
  readonly #weights: readonly Tensor[]
  readonly #biases: readonly (Tensor | null)[]
  #owned: readonly Tensor[] = []
  #disposed = false

  /** @throws TypeError or RangeError naming the option */
  constructor(options: GroupedExpertsOptions) {
    requireOptions('GroupedExperts options', options, [...shapeKeys, 'weights', 'biases'])
    this.spec = specOf(options)
    this.#desc = mlpDesc(this.spec)
    const { weights } = options
    if (!Array.isArray(weights)) throw new TypeError(`weights must be an array of tensors, got ${describe(weights)}`)
    const shapes = linearShapes(this.spec)
    const biases: readonly (Tensor | null)[] = options.biases ?? shapes.map(() => null)
    for (const [name, list] of [
      ['weights', weights],
      ['biases', biases],
    ] as const) {
      if (list.length !== shapes.length) {
        throw new RangeError(
          `${name} must have ${shapes.length} entries for kind '${this.spec.kind}', got ${list.length}`,
        )
      }
    }
    this.#at = placement(options.device, options.stream, weights[0])
    const { device } = this.#at
    const { numExperts, dtype } = this.spec
    for (const [i, { rows, columns }] of shapes.entries()) {
      checkTensor(`weights[${i}]`, weights[i], { dtype, device, shape: [numExperts, rows, columns] })
      const bias = biases[i] ?? null
      if (bias !== null) checkTensor(`biases[${i}]`, bias, { dtype: 'f32', device, shape: [numExperts, rows] })
    }
    this.#weights = [...weights]
    this.#biases = [...biases]
    for (const tensor of [...this.#weights, ...this.#biases]) readOrNull(this.#at.stream, tensor)
  }

  /** Experts with normally distributed weights of scale 1/√(fan-in), made on the device; they own them. */
  static random(options: RandomExpertsOptions): GroupedExperts {
    requireOptions('GroupedExperts.random options', options, [...shapeKeys, 'bias', 'seed'])
    const { bias = false, seed = 0, ...shape } = options
    if (typeof bias !== 'boolean') throw new TypeError(`bias must be a boolean, got ${describe(bias)}`)
    checkInteger('seed', seed, 0, 2 ** 32 - 1)
    const spec = specOf(shape)
    const at = placement(shape.device, shape.stream)
    const owned: Tensor[] = []
    const randn = (dims: number[], dtype: FloatDType, fanIn: number): Tensor => {
      // Philox streams of one seed must differ per tensor, and so must neighbouring seeds: 16 numbers each.
      const own = { seed: seed * 16 + owned.length, scale: 1 / Math.sqrt(fanIn) }
      const tensor = Tensor.randn(dims, { dtype, device: at.device, stream: at.stream, ...own })
      owned.push(tensor)
      return tensor
    }
    try {
      const shapes = linearShapes(spec)
      const weights = shapes.map((s) => randn([spec.numExperts, s.rows, s.columns], spec.dtype, s.columns))
      const biases = shapes.map((s) => (bias ? randn([spec.numExperts, s.rows], 'f32', s.columns) : null))
      const experts = new GroupedExperts({ ...shape, ...at, weights, biases })
      experts.#owned = owned
      return experts
    } catch (error) {
      for (const tensor of owned) tensor.dispose()
      throw error
    }
  }

  /**
   * Every slot's row through its expert's MLP.
   * @param x [tokens, inputDim] of the experts' dtype
   * @returns [tokens·topK, outputDim] in slot order, of the experts' dtype; the caller disposes of it
   */
  forward(x: Tensor, routed: RoutedTokens, options: ExpertsForwardOptions = {}): Tensor {
    if (this.#disposed) throw new DisposedError('these GroupedExperts were disposed')
    checkOptions('forward options', options, ['inputScale'])
    const { device, stream } = this.#at
    const { numExperts, inputDim, outputDim, dtype } = this.spec
    checkRouted(routed)
    const { tokens, topK } = routed
    if (routed.numExperts !== numExperts) {
      throw new RangeError(`routed must be over ${numExperts} experts, got ${routed.numExperts}`)
    }
    checkTensor('x', x, { dtype, device, shape: [tokens, inputDim] })
    checkTensor('routed.offsets', routed.offsets, { dtype: 'i32', device, shape: [numExperts + 1] })
    checkTensor('routed.order', routed.order, { dtype: 'i32', device, shape: [tokens * topK] })
    const { inputScale = null } = options
    if (inputScale !== null) checkTensor('inputScale', inputScale, { dtype: 'f32', device, shape: [tokens, topK] })

    const weights = this.#weights.map((tensor) => bufferOf(tensor))
    const biases = this.#biases.map((tensor) => tensor && bufferOf(tensor))
    const input = readOn(stream, x)
    const offsets = readOn(stream, routed.offsets)
    const order = readOn(stream, routed.order)
    const scale = readOrNull(stream, inputScale)
    const rows = Tensor.empty([tokens * topK, outputDim], { dtype, device, stream })
    if (tokens === 0) return rows
    try {
      const bytes = call(() =>
        binding().routerKernels.mlpWorkspaceBytes(deviceIndex(device), this.#desc, tokens * topK),
      )
      const out = bufferOf(rows)
      withScratch(stream, bytes, (scratch, on) =>
        binding().routerKernels.groupedMlp(
          on,
          this.#desc,
          weights,
          biases,
          input,
          tokens,
          topK,
          offsets,
          order,
          scale,
          out,
          scratch,
        ),
      )
    } catch (error) {
      rows.dispose()
      throw error
    }
    return rows
  }

  /** The kernel variant of each linear layer for so many rows (tokens·topK). */
  variant(rows: number): string[] {
    if (this.#disposed) throw new DisposedError('these GroupedExperts were disposed')
    checkInteger('rows', rows, 0, 2 ** 31 - 1)
    const device = deviceIndex(this.#at.device)
    return this.#weights.map((_, layer) => call(() => binding().routerKernels.variant(device, this.#desc, layer, rows)))
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** Releases what `random` made; tensors that the experts were given stay the caller's. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    for (const tensor of this.#owned) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
