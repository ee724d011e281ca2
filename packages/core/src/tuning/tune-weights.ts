/**
 * The weights of a layer for as long as it is tuned: whole sets, of which steps are made, and more copies of the linear layers that are
 * small, so that each of them alone is beyond the cache, too.
 */
import { type Stream, Tensor } from '@nexus/native'
import type { LayerConfig } from '../options.js'
import { layIntoPanels, layWeights } from '../weight-layout.js'
import { randomWeights, type WeightSet } from '../weights.js'
import type { LinearSpec } from './linears.js'

const mostCopies = 64
const copiesBeyond = (cacheBytes: number, bytes: number): number =>
  Math.max(1, Math.min(mostCopies, Math.ceil((2 * cacheBytes) / bytes)))

export class TuneWeights {
  /** The layer's weights, as often as makes twice `cacheBytes`: at most 64 times. */
  readonly sets: readonly WeightSet[]
  /** f32 [numExperts]: the router's biases in all sets, which make its load even or skewed. */
  readonly routerBias: Tensor
  readonly #config: LayerConfig
  readonly #stream: Stream
  readonly #cacheBytes: number
  readonly #more = new Map<LinearSpec, Tensor[]>()

  constructor(config: LayerConfig, stream: Stream, cacheBytes: number) {
    this.#config = config
    this.#stream = stream
    this.#cacheBytes = cacheBytes
    const { device, rule, seed } = config
    const sets: WeightSet[] = []
    this.sets = sets
    this.routerBias = Tensor.zeros([rule.numExperts], { dtype: 'f32', device, stream })
    try {
      for (let wanted = 1; sets.length < wanted; ) {
        const set = randomWeights({ config: { ...config, seed: seed + sets.length }, stream })
        sets.push(set)
        layWeights(set, { config, stream }, 'auto')
        wanted = copiesBeyond(cacheBytes, set.bytes)
        set.routerBias = this.routerBias
      }
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** A linear layer's copies, together beyond the cache. */
  of(linear: LinearSpec): readonly Tensor[] {
    const own = this.sets.map((set) => set[linear.mlp][linear.index]).filter((tensor) => tensor !== undefined)
    const more = this.#more.get(linear) ?? []
    this.#more.set(linear, more)
    const { numExperts, n, k, dtype } = linear
    const { device, seed } = this.#config
    const copies = copiesBeyond(this.#cacheBytes, own[0]?.byteLength ?? 1)
    while (own.length + more.length < copies) {
      const random = { seed: seed + own.length + more.length, scale: 1 / Math.sqrt(k) }
      const copy = Tensor.randn([numExperts, n, k], { dtype, device, stream: this.#stream, ...random })
      more.push(copy)
      if (linear.raw.inPanels) layIntoPanels(this.#stream, linear, copy)
    }
    return [...own, ...more]
  }

  [Symbol.dispose](): void {
    for (const set of this.sets) set.release()
    for (const tensor of [...this.#more.values()].flat()) tensor.dispose()
    this.routerBias.dispose()
  }
}
