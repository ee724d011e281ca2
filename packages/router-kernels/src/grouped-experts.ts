/**
 * The experts' MLPs as grouped launches: each token's row goes through the MLP of the expert that it was routed to, all experts in one
 * launch per linear layer, the buckets read on the device.
 */
import { checkInteger, checkOptions, DisposedError, describe, requireOptions, Tensor } from '@nexus/native'
import { checkTensor } from './check.js'
import {
  checkLane,
  type ExpertsForwardOptions,
  type GroupedExpertsOptions,
  type RandomExpertsOptions,
  shapeKeys,
  specOf,
} from './experts-options.js'
import { type FloatDType, linearShapes, type MlpSpec, mlpDesc } from './mlp-options.js'
import type { RawMlpDesc } from './native.js'
import {
  addTensorWriter,
  binding,
  call,
  deviceIndex,
  laneSetOn,
  type Placement,
  placement,
  placementOf,
  readOn,
  readOrNull,
  streamOf,
  writeOn,
} from './native.js'
import { checkRouted, type RoutedTokens } from './routed-tokens.js'
import { Workspace } from './workspace.js'

/** Expert MLPs on one device. */
export class GroupedExperts {
  readonly spec: MlpSpec
  readonly #at: Placement
  readonly #desc: RawMlpDesc
  readonly #weights: readonly Tensor[]
  readonly #biases: readonly (Tensor | null)[]
  readonly #scratch = new Workspace()
  #scratchBytes = { rows: -1, bytes: 0 }
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
   * Every slot's row through its expert's MLP. Lanes never change a bit of the result.
   * @param x [tokens, inputDim] of the experts' dtype
   * @returns [tokens·topK, outputDim] in slot order, of the experts' dtype; a new one is the caller's to dispose of
   * @throws TypeError, RangeError naming the argument; DisposedError; GraphCaptureError when it would have to allocate while the stream is
   * recorded: give `out`, and run as many rows on that stream once before
   */
  forward(x: Tensor, routed: RoutedTokens, options: ExpertsForwardOptions = {}): Tensor {
    if (this.#disposed) throw new DisposedError('these GroupedExperts were disposed')
    checkOptions('forward options', options, ['inputScale', 'stream', 'out', 'lanes', 'lane'])
    const { device, stream } = placementOf(this.#at, options.stream)
    const { numExperts, inputDim, outputDim, dtype } = this.spec
    checkRouted(routed)
    const { tokens, topK } = routed
    if (routed.numExperts !== numExperts) {
      throw new RangeError(`routed must be over ${numExperts} experts, got ${routed.numExperts}`)
    }
    checkTensor('x', x, { dtype, device, shape: [tokens, inputDim] })
    checkTensor('routed.offsets', routed.offsets, { dtype: 'i32', device, shape: [numExperts + 1] })
    checkTensor('routed.order', routed.order, { dtype: 'i32', device, shape: [tokens * topK] })
    const { inputScale = null, lanes = null } = options
    if (inputScale !== null) checkTensor('inputScale', inputScale, { dtype: 'f32', device, shape: [tokens, topK] })
    const shape = [tokens * topK, outputDim]
    if (options.out !== undefined) checkTensor('out', options.out, { dtype, device, shape })
    const lane = checkLane(options, numExperts, device)

    const rows = options.out ?? Tensor.empty(shape, { dtype, device, stream })
    if (tokens === 0) return rows
    try {
      const weights = this.#weights.map((tensor) => readOn(stream, tensor))
      const biases = this.#biases.map((tensor) => readOrNull(stream, tensor))
      const input = readOn(stream, x)
      const offsets = readOn(stream, routed.offsets)
      const order = readOn(stream, routed.order)
      const scale = readOrNull(stream, inputScale)
      const table = lanes === null ? null : laneSetOn(stream, lanes)
      const scratch = this.#scratch.take(stream, this.#workspaceBytes(tokens * topK))
      // Other lanes write the rest of it at the same time: it stays with the stream that they are joined to.
      const out = lane < 0 ? writeOn(stream, rows) : readOn(stream, rows)
      if (lane >= 0) addTensorWriter(rows, stream)
      call(() =>
        binding().routerKernels.groupedMlp(
          streamOf(stream),
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
          table,
          lane,
        ),
      )
    } catch (error) {
      if (options.out === undefined) rows.dispose()
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

  #workspaceBytes(rows: number): number {
    if (this.#scratchBytes.rows !== rows) {
      const device = deviceIndex(this.#at.device)
      const bytes = call((b) => b.routerKernels.mlpWorkspaceBytes(device, this.#desc, rows))
      this.#scratchBytes = { rows, bytes }
    }
    return this.#scratchBytes.bytes
  }

  /** Releases what `random` made, and workspaces; tensors that the experts were given stay the caller's. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    this.#scratch.dispose()
    for (const tensor of this.#owned) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
