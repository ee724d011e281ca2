/**
 * The layers of one shape: copies in bf16 that inputs rotate over, so that weights come from memory and not from the cache, and a float32
 * twin of the first, against which every row of a step is held.
 */
import { MoELayer, Tensor } from '@nexus/core'
import { layerOptions } from '../layer-options.js'
import { Owned } from '../owned.js'
import type { Shape } from '../shapes.js'

export class ShapeLayers {
  private constructor(
    private readonly owned: Owned,
    readonly shape: Shape,
    readonly layers: readonly MoELayer[],
    /** With the weights of the first, launched one operation at a time: for the times of its phases. */
    readonly plain: MoELayer,
    /** With the same weights, batch-invariant; none where they were not asked for. */
    readonly invariant: readonly MoELayer[],
    readonly reference: MoELayer,
    /** The first layer's again, in rows. */
    readonly weights: { readonly w1: Tensor; readonly w2: Tensor; readonly router: Tensor },
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
    const owned = new Owned()
    const { own } = owned
    try {
      const common = { ...layerOptions(shape, device, 'bf16'), router: { normalize: 'sum' } } as const
      // The largest steps' workspaces are hundreds of megabytes, and a graph may be what holds them.
      const graphs = replay && { captureAfter: 1, maxTokens: 2 ** 20, memoryBudgetBytes: 8 * 2 ** 30 }
      const layers: MoELayer[] = []
      const invariant: MoELayer[] = []
      const normals = (c: number) => {
        const normal = (n: number, dims: number[], scale: number) =>
          Tensor.randn(dims, { dtype: 'bf16', device, seed: seed + 10 * c + n, scale })
        return {
          w1: normal(1, [shape.experts, 2 * shape.inter, shape.hidden], shape.hidden ** -0.5),
          w2: normal(2, [shape.experts, shape.hidden, shape.inter], shape.inter ** -0.5),
          router: normal(3, [shape.experts, shape.hidden], shape.hidden ** -0.5),
        }
      }
      for (let c = 0; c < copies; c++) {
        const { w1, w2, router } = normals(c)
        const routerBias = Tensor.zeros([shape.experts], { dtype: 'f32', device })
        // Of the layer's own, so that they lie as those of most users do.
        const weights = { router, routerBias, experts: [w1, w2] }
        layers.push(own(await MoELayer.create({ ...common, weights, adoptWeights: true, graphs })))
      }
      const [one] = layers
      if (!one) throw new RangeError(`copies: ${copies} was given, at least 1 is needed`)
      for (const weightsFrom of invariance ? layers : []) {
        const options = { ...common, weightsFrom, graphs, deterministic: 'batch-invariant' } as const
        invariant.push(own(await MoELayer.create(options)))
      }
      const plain = own(await MoELayer.create({ ...common, weightsFrom: one }))
      const first = normals(0)
      const { router, w1, w2 } = first
      for (const tensor of [router, w1, w2]) own(tensor)
      const wide = async (tensor: Tensor) => own(await tensor.to({ dtype: 'f32' }))
      const weights = { router: await wide(router), experts: [await wide(w1), await wide(w2)] }
      const reference = own(
        await MoELayer.create({ ...layerOptions(shape, device, 'f32'), router: { normalize: 'sum' }, weights }),
      )
      return new ShapeLayers(owned, shape, layers, plain, invariant, reference, first)
    } catch (error) {
      owned.dispose()
      throw error
    }
  }

  /** What all copies add to the logits that they compute themselves: f32 [experts]. */
  async addToLogits(bias: Float32Array): Promise<void> {
    for (const { weights } of this.layers) await weights.routerBias?.write(bias)
  }

  /** The i-th copy, round and round. */
  layer(i: number): MoELayer {
    const layer = this.layers[i % this.layers.length]
    if (!layer) throw new RangeError(`layer ${i} does not exist`)
    return layer
  }

  dispose(): void {
    this.owned.dispose()
  }
}
