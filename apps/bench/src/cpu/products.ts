/** The experts' products of a cell alone, beside one `sgemm` per expert and matrix of each BLAS library. */
import { Stream, Tensor } from '@nexus/core'
import { layerFlop } from '../limits.js'
import { type CpuGemmRow, gemmAim } from './result.js'
import type { CpuLayers } from './shape-layers.js'
import { inTurns, type Turn, timesFaster } from './turns.js'

export interface ProductsOptions {
  readonly tokens: number
  readonly rounds: number
  readonly turnMs: number
  /** Names by which the peers know the libraries. */
  readonly libraries: readonly string[]
}

/** @param asked a turn of the peers */
export async function measureProducts(
  { shape, router, experts }: CpuLayers,
  xs: readonly Tensor[],
  logits: readonly Tensor[],
  asked: (op: string, request: object) => Turn,
  { tokens, rounds, turnMs, libraries }: ProductsOptions,
): Promise<CpuGemmRow[]> {
  if (libraries.length === 0) return []
  const device = 'cpu'
  const stream = Stream.default(device)
  const routed = logits.map((l) => router.route(null, l))
  const out = Tensor.empty([tokens * shape.topK, shape.hidden], { dtype: 'f32', device })
  try {
    let next = 0
    const products: Turn = async (calls) => {
      const start = performance.now()
      for (let i = 0; i < calls; i++) {
        const v = next++ % xs.length
        const [x, buckets] = [xs[v], routed[v]]
        if (x !== undefined && buckets !== undefined) experts.forward(x, buckets, { out })
      }
      await stream.synchronize()
      return ((performance.now() - start) * 1e3) / calls
    }
    const times = await inTurns(
      [
        { name: 'products', turn: products },
        ...libraries.map((library) => ({ name: library, turn: asked('gemm', { library }) })),
      ],
      rounds,
      turnMs,
    )
    const gflop = layerFlop(shape, tokens) / 1e9
    const ours = times.get('products')
    return libraries.flatMap((library) => {
      const theirs = times.get(library)
      if (ours === undefined || theirs === undefined) return []
      return {
        shape: shape.name,
        tokens,
        library,
        nexusUs: ours.us,
        nexusGflops: gflop / (ours.us * 1e-6),
        libraryUs: theirs.us,
        libraryGflops: gflop / (theirs.us * 1e-6),
        ratio: timesFaster(theirs, ours),
        aim: gemmAim,
      }
    })
  } finally {
    for (const r of routed) r.dispose()
    out.dispose()
  }
}
