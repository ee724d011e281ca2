/**
 * `bench float32`: the layer in true float32, checked against float64 as float32 must be, and its rate beside that of cuBLAS's SGEMM through
 * PyTorch with TF32 off: an expert's rows at a time, and a large square product, whichever is faster.
 */
import { MoELayer, Stream, Tensor } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { checkedTokens, layerRows, relativeError } from '../float64.js'
import { layerOptions } from '../layer-options.js'
import { layerFlop } from '../limits.js'
import { readPart } from '../native.js'
import { Owned } from '../owned.js'
import { cellLogits } from '../random.js'
import type { Shape } from '../shapes.js'
import { timeCalls } from '../timing.js'
import { type SgemmTimes, sgemmTimes } from './sgemm.js'

export interface Float32Options {
  readonly device: 'cpu' | 'cuda'
  readonly cells: readonly { readonly shape: Shape; readonly tokens: number }[]
  readonly budgetMs: number
  readonly seed: number
  /** Run the peer too. */
  readonly peer: boolean
  /** @default python3 */
  readonly python?: string
  readonly onProgress: (line: string) => void
}

export interface Float32Row {
  readonly shape: string
  readonly tokens: number
  /** A step, from (x, router logits) to y. */
  readonly nexusUs: number
  readonly nexusTflops: number
  /** To float64 on some rows. */
  readonly relativeError: number
  /** Of the same experts' products alone; `null` where the peer did not run. */
  readonly sgemmTflops: number | null
}

export interface Float32Result {
  readonly kind: 'float32'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly rows: readonly Float32Row[]
  /** Of the large square product; `null` where the peer did not run. */
  readonly squareTflops: number | null
  readonly peerError: string | null
}

/** Float32 products of unit-scale numbers are within some 1e-6; TF32 is at 5e-4. */
const tolerance = 2e-5

const squareSide = 8192

export async function float32Bench(options: Float32Options): Promise<Float32Result> {
  const { device, cells, seed, onProgress } = options
  const ours: Omit<Float32Row, 'sgemmTflops'>[] = []
  for (const cell of cells) ours.push(await measure(cell, options))
  let peers: SgemmTimes = { cells: [], squareUs: null }
  let peerError: string | null = options.peer ? null : 'not asked for'
  if (options.peer) {
    try {
      onProgress('cuBLAS, through PyTorch')
      peers = await sgemmTimes(options)
    } catch (error) {
      peerError = errorText(error)
      onProgress(peerError)
    }
  }
  return {
    kind: 'float32',
    what:
      'one layer in float32, from (x, router logits) to y; PyTorch’s float32 products of the same experts, every one with the mean of the rows, and ' +
      `of ${squareSide} × ${squareSide} × ${squareSide}, TF32 off`,
    environment: environment(device),
    seed,
    rows: ours.map((row, i) => {
      const us = peers.cells[i]
      return { ...row, sgemmTflops: us === undefined ? null : (row.nexusTflops * row.nexusUs) / us }
    }),
    squareTflops: peers.squareUs === null ? null : (2 * squareSide ** 3) / peers.squareUs / 1e6,
    peerError,
  }
}

async function measure(
  { shape, tokens }: Float32Options['cells'][number],
  { device, budgetMs, seed, onProgress }: Float32Options,
): Promise<Omit<Float32Row, 'sgemmTflops'>> {
  using owned = new Owned()
  const { own } = owned
  const normal = (n: number, dims: number[], scale = 1) =>
    own(Tensor.randn(dims, { dtype: 'f32', device, seed: seed + n, scale }))
  const w1 = normal(1, [shape.experts, 2 * shape.inter, shape.hidden], shape.hidden ** -0.5)
  const w2 = normal(2, [shape.experts, shape.hidden, shape.inter], shape.inter ** -0.5)
  const x = normal(3, [tokens, shape.hidden])
  const [host] = cellLogits(tokens, shape.experts, 1, 0, seed + tokens)
  if (!host) throw new RangeError('logits: expected one batch, got none')
  const logits = own(Tensor.from(host, [tokens, shape.experts], { device }))
  const out = own(Tensor.empty([tokens, shape.hidden], { dtype: 'f32', device }))
  const stream = own(Stream.create({ device }))
  const router = { normalize: 'sum' } as const
  const weights = { experts: [w1, w2] }
  const layer = own(await MoELayer.create({ ...layerOptions(shape, device, 'f32'), router, weights }))
  const step = () => void layer.enqueue(x, { logits, out, stream })
  step()
  const rows = checkedTokens(shape, tokens)
  const want = await layerRows(shape, { w1, w2 }, x, host, rows)
  const seen = await Promise.all(rows.map((token) => readPart(out, token * shape.hidden, shape.hidden)))
  const error = relativeError(seen, want)
  if (!(error < tolerance)) {
    throw new RangeError(`${shape.name}, ${tokens} tokens: the output is no float32: relative error ${error}`)
  }
  const { medianUs } = await timeCalls(stream, [step], { budgetMs, maxCalls: 400 })
  const nexusTflops = layerFlop(shape, tokens) / medianUs / 1e6
  onProgress(`${shape.name} ${tokens} tokens: ${medianUs.toFixed(0)} us, ${nexusTflops.toFixed(1)} TFLOP/s`)
  return { shape: shape.name, tokens, nexusUs: medianUs, nexusTflops, relativeError: error }
}
