/**
 * One cell: a shape at a token count, timed through the public layer API from (x, router logits) to y.
 *
 * Correctness first: the bf16 output against a float32 layer with the very same weights, inputs and routing. Then calls
 * rotate over several inputs, and over copies of small models, so that weights come from memory and not from the cache.
 * Device events bracket a batch of calls; the host runs ahead of the device, as a serving loop would.
 */
import { Event, MoELayer, Stream, Tensor } from '@nexus/core'
import { inputCount, limitUs } from './limits.js'
import { median } from './median.js'
import { cellLogits } from './random.js'
import type { Shape } from './shapes.js'

export interface CellResult {
  shape: string
  tokens: number
  skew: number
  expertsHit: number
  limitUs: number
  nexusUs: number
  nexusMinUs: number
  nexusMaxUs: number
  relativeError: number
  ratio: number
  phasesUs: { router: number; experts: number; combine: number }
  variants: readonly string[]
  peers: Record<string, number>
}

/** The layers of one shape: `copies` in bf16, and a float32 twin of the first. */
export class ShapeLayers {
  private constructor(
    readonly shape: Shape,
    readonly layers: readonly MoELayer[],
    readonly reference: MoELayer,
  ) {}

  static async create(shape: Shape, copies: number, device: 'cpu' | 'cuda', seed: number): Promise<ShapeLayers> {
    const layers: MoELayer[] = []
    let reference: MoELayer | undefined
    for (let c = 0; c < copies; c++) {
      const options = { device, seed: seed + 10 * c } as const
      const w1Shape = [shape.experts, 2 * shape.inter, shape.hidden]
      const w2Shape = [shape.experts, shape.hidden, shape.inter]
      const w1 = Tensor.randn(w1Shape, { dtype: 'bf16', device, seed: options.seed + 1, scale: shape.hidden ** -0.5 })
      const w2 = Tensor.randn(w2Shape, { dtype: 'bf16', device, seed: options.seed + 2, scale: shape.inter ** -0.5 })
      const router = Tensor.randn([shape.experts, shape.hidden], { dtype: 'bf16', device, seed: options.seed + 3 })
      const common = {
        inputDim: shape.hidden,
        hiddenDim: shape.inter,
        numExperts: shape.experts,
        topK: shape.topK,
        router: { normalize: 'sum' },
        device,
      } as const
      layers.push(await MoELayer.create({ ...common, dtype: 'bf16', weights: { router, experts: [w1, w2] } }))
      if (c === 0) {
        const wide = [await w1.to({ dtype: 'f32' }), await w2.to({ dtype: 'f32' })]
        const wideRouter = await router.to({ dtype: 'f32' })
        reference = await MoELayer.create({ ...common, dtype: 'f32', weights: { router: wideRouter, experts: wide } })
      }
    }
    if (!reference) throw new RangeError(`copies: ${copies} was given, at least 1 is needed`)
    return new ShapeLayers(shape, layers, reference)
  }

  dispose(): void {
    for (const layer of [...this.layers, this.reference]) layer.dispose()
  }
}

export interface CellOptions {
  readonly device: 'cpu' | 'cuda'
  readonly skew: number
  readonly seed: number
  /** Roughly how long to time a cell for. */
  readonly budgetMs: number
  /** Called with the logits, for peers to read. */
  readonly onLogits?: (logits: readonly Float32Array[]) => void
}

export async function measureCell(layers: ShapeLayers, tokens: number, options: CellOptions): Promise<CellResult> {
  const { shape } = layers
  const { device, skew, seed, budgetMs } = options
  const count = inputCount(shape, tokens)
  const hostLogits = cellLogits(tokens, shape.experts, count, skew, seed + tokens)
  options.onLogits?.(hostLogits)
  const logits = hostLogits.map((l) => Tensor.from(l, [tokens, shape.experts], { device }))
  const xs = hostLogits.map((_, v) =>
    Tensor.randn([tokens, shape.hidden], { dtype: 'bf16', device, seed: seed + 77 * v + tokens }),
  )
  const out = Tensor.empty([tokens, shape.hidden], { dtype: 'bf16', device })
  const step = (v: number) => {
    const layer = layers.layers[v % layers.layers.length]
    const x = xs[v]
    if (!layer || !x) throw new RangeError(`input ${v} does not exist`)
    layer.enqueue(x, { logits: logits[v], out })
  }
  try {
    const first = xs[0]
    const head = layers.layers[0]
    if (!first || !head) throw new RangeError('no inputs')
    const { relativeError, phasesUs } = await check(layers.reference, head, first, logits[0])
    let hit = 0
    for (let v = 0; v < count; v++) {
      const x = xs[v]
      const layer = layers.layers[v % layers.layers.length]
      if (x && layer) hit += (await layer.forward(x, { logits: logits[v], out })).stats.activeExperts / count
    }

    const stream = Stream.default(device)
    const start = Event.create(device)
    const end = Event.create(device)
    const batch = async (rounds: number) => {
      start.record(stream)
      for (let r = 0; r < rounds; r++) for (let v = 0; v < count; v++) step(v)
      end.record(stream)
      await stream.synchronize()
      return (start.elapsedMs(end) * 1e3) / (rounds * count)
    }
    const estimateUs = await batch(1)
    const rounds = Math.max(1, Math.ceil(Math.min(4000 / count, (budgetMs * 1e3) / 15 / (estimateUs * count))))
    await batch(rounds)
    const samples: number[] = []
    for (let i = 0; i < 15; i++) samples.push(await batch(rounds))
    start.dispose()
    end.dispose()
    const nexusUs = median(samples)
    const limit = limitUs(shape, tokens, hit)
    return {
      shape: shape.name,
      tokens,
      skew,
      expertsHit: hit,
      limitUs: limit,
      nexusUs,
      nexusMinUs: Math.min(...samples),
      nexusMaxUs: Math.max(...samples),
      relativeError,
      ratio: nexusUs / limit,
      phasesUs,
      variants: head.performanceStats().variants.experts,
      peers: {},
    }
  } finally {
    for (const t of [...xs, ...logits, out]) t.dispose()
  }
}

/** Phases are timed in steps that are launched one operation at a time, as this one is. */
const us = (ms: number | null) => (ms ?? Number.NaN) * 1e3

/** The bf16 layer against its float32 twin, and the phase times of a warm step. */
async function check(reference: MoELayer, layer: MoELayer, x: Tensor, logits: Tensor | undefined) {
  const wide = await x.to({ dtype: 'f32' })
  const want = await reference.forward(wide, { logits })
  const got = await layer.forward(x, { logits })
  const a = await got.output.toFloat32Array()
  const b = await want.output.toFloat32Array()
  let diff = 0
  let norm = 0
  for (let i = 0; i < b.length; i++) {
    diff += ((a[i] ?? Number.NaN) - (b[i] ?? Number.NaN)) ** 2
    norm += (b[i] ?? 0) ** 2
  }
  got.output.dispose()
  want.output.dispose()
  wide.dispose()
  const warm = await layer.forward(x, { logits })
  warm.output.dispose()
  const { routerMs, expertsMs, combineMs } = warm.stats.times
  return {
    relativeError: Math.sqrt(diff / norm),
    phasesUs: { router: us(routerMs), experts: us(expertsMs), combine: us(combineMs) },
  }
}
