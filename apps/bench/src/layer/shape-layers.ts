/**
 * The layers of one shape: copies in bf16 that inputs rotate over, so that weights come from memory and not from the cache, and a float32
 * twin of the first, against which every row of a step is held.
 */
import { MoELayer, Tensor } from '@nexus/core'
import { layerOptions } from '../layer-options.js'
import type { Shape } from '../shapes.js'

export class ShapeLayers {
  private constructor(
    readonly shape: Shape,
    readonly layers: readonly MoELayer[],
    /** With the weights of the first, launched one operation at a time: for the times of its phases. */
    readonly plain: MoELayer,
    /** With the same weights, batch-invariant; none where they were not asked for. */
    readonly invariant: readonly MoELayer[],
    readonly reference: MoELayer,
    /** Of the first layer. */
    readonly weights: { readonly w1: Tensor; readonly w2: Tensor; readonly router: Tensor },
    /** f32 [experts], which all copies add to the logits that they compute themselves. */
    readonly routerBias: Tensor,
  ) {}

  /**
   * @param replay - replay a recorded step; else steps are launched one operation at a time
   * @param invariance - make batch-invariant layers too
   */
  static async create(
    shape: Shape,
    copies: number,
    device: 'cpu' | 'cuda',
    seed: number,
    replay: boolean,
    invariance: boolean,
  ): Promise<ShapeLayers> {
    const made: { dispose(): void }[] = []
    const own = <T extends { dispose(): void }>(each: T): T => {
      made.push(each)
      return each
    }
    try {
      const routerBias = own(Tensor.zeros([shape.experts], { dtype: 'f32', device }))
      const common = { ...layerOptions(shape, device, 'bf16'), router: { normalize: 'sum' } } as const
      // The largest steps' workspaces are hundreds of megabytes, and a graph may be what holds them.
      const graphs = replay && { captureAfter: 1, maxTokens: 2 ** 20, memoryBudgetBytes: 8 * 2 ** 30 }
      const layers: MoELayer[] = []
      const invariant: MoELayer[] = []
      let first: { w1: Tensor; w2: Tensor; router: Tensor } | undefined
      for (let c = 0; c < copies; c++) {
        const normal = (n: number, dims: number[], scale: number) =>
          own(Tensor.randn(dims, { dtype: 'bf16', device, seed: seed + 10 * c + n, scale }))
        const w1 = normal(1, [shape.experts, 2 * shape.inter, shape.hidden], shape.hidden ** -0.5)
        const w2 = normal(2, [shape.experts, shape.hidden, shape.inter], shape.inter ** -0.5)
        const router = normal(3, [shape.experts, shape.hidden], shape.hidden ** -0.5)
        first ??= { w1, w2, router }
        const weights = { router, routerBias, experts: [w1, w2] }
        layers.push(own(await MoELayer.create({ ...common, weights, graphs })))
        if (!invariance) continue
        invariant.push(own(await MoELayer.create({ ...common, weights, graphs, deterministic: 'batch-invariant' })))
      }
      if (!first) throw new RangeError(`copies: ${copies} was given, at least 1 is needed`)
      const { router, w1, w2 } = first
      const plain = own(await MoELayer.create({ ...common, weights: { router, routerBias, experts: [w1, w2] } }))
      const wide = async (tensor: Tensor) => own(await tensor.to({ dtype: 'f32' }))
      const weights = { router: await wide(router), experts: [await wide(w1), await wide(w2)] }
      const reference = own(
        await MoELayer.create({ ...layerOptions(shape, device, 'f32'), router: { normalize: 'sum' }, weights }),
      )
      const result = new ShapeLayers(shape, layers, plain, invariant, reference, first, routerBias)
      result.#made.push(...made)
      return result
    } catch (error) {
      for (const each of made.reverse()) each.dispose()
      throw error
    }
  }

  readonly #made: { dispose(): void }[] = []

  /** The i-th copy, round and round. */
  layer(i: number): MoELayer {
    const layer = this.layers[i % this.layers.length]
    if (!layer) throw new RangeError(`layer ${i} does not exist`)
    return layer
  }

  dispose(): void {
    for (const each of this.#made.reverse()) each.dispose()
  }
}
