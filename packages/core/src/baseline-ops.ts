/**
 * The unfused operations of which the textbook loop is made, on tensors. Each is one native call that writes a tensor of its own; a
 * `Scratch` gives them back.
 */
import { type Stream, Tensor } from '@nexus/native'
import type { FloatDType, MlpSpec } from '@nexus/router-kernels'
import { combineModes, epilogueCode, linearShapes, sizeAt } from '@nexus/router-kernels/internal'
import { binding, bufferOf, call, dtypeCode, readOn, readOrNull, streamOf, writeOn } from './native.js'

/** Temporary tensors on one stream; disposing is stream-ordered, so it may follow the enqueue at once. */
export class Scratch {
  readonly stream: Stream
  readonly #tensors: Tensor[] = []

  constructor(stream: Stream) {
    this.stream = stream
  }

  keep(tensor: Tensor): Tensor {
    this.#tensors.push(tensor)
    return tensor
  }

  empty(shape: readonly number[], dtype: FloatDType): Tensor {
    return this.keep(Tensor.empty(shape, { dtype, device: this.stream.device, stream: this.stream }))
  }

  zeros(shape: readonly number[]): Tensor {
    return this.keep(Tensor.zeros(shape, { dtype: 'f32', device: this.stream.device, stream: this.stream }))
  }

  ones(shape: readonly number[]): Tensor {
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1)
    return this.keep(Tensor.from(data, shape, { dtype: 'f32', device: this.stream.device, stream: this.stream }))
  }

  integers(data: Int32Array): Tensor {
    return this.keep(Tensor.from(data, [data.length], { device: this.stream.device, stream: this.stream }))
  }

  /** 0, 1, … n - 1: the order in which every row stays where it is. */
  iota(n: number): Tensor {
    return this.integers(Int32Array.from({ length: n }, (_, i) => i))
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Rows order[first … first + n) of the buckets; `order` holds slots. */
export interface Bucket {
  readonly order: Tensor
  readonly first: number
  readonly n: number
}

/** out[i] = x[order[first + i] / rowsPerInput]. */
export function gatherRows(
  s: Scratch,
  dtype: FloatDType,
  x: Tensor,
  { order, first, n }: Bucket,
  rowsPerInput: number,
): Tensor {
  const width = sizeAt(x, 1)
  const out = s.empty([n, width], dtype)
  const [from, slots, to] = [readOn(s.stream, x), readOn(s.stream, order), bufferOf(out)]
  call(() =>
    binding().routerKernels.gatherRows(
      streamOf(s.stream),
      dtypeCode[dtype],
      from,
      slots,
      first,
      n,
      rowsPerInput,
      width,
      to,
    ),
  )
  return out
}

/** acc[order[first + i] / rowsPerToken] += weights[order[first + i]]·rows[i], in float32. */
export function indexAdd(
  s: Scratch,
  dtype: FloatDType,
  rows: Tensor,
  weights: Tensor,
  bucket: Bucket,
  rowsPerToken: number,
  acc: Tensor,
) {
  const { order, first, n } = bucket
  const width = sizeAt(rows, 1)
  const [from, w, slots, to] = [
    readOn(s.stream, rows),
    readOn(s.stream, weights),
    readOn(s.stream, order),
    bufferOf(acc),
  ]
  call(() =>
    binding().routerKernels.indexAdd(
      streamOf(s.stream),
      dtypeCode[dtype],
      from,
      w,
      slots,
      first,
      n,
      rowsPerToken,
      width,
      to,
    ),
  )
}

/** Rows [tokens·topK, width] in slot order, each times its weight. */
export function scaleRows(s: Scratch, dtype: FloatDType, rows: Tensor, weights: Tensor): Tensor {
  const [tokens, topK, width] = [sizeAt(weights, 0), sizeAt(weights, 1), sizeAt(rows, 1)]
  const out = s.empty([tokens * topK, width], dtype)
  const [from, w, to] = [readOn(s.stream, rows), readOn(s.stream, weights), bufferOf(out)]
  const concat = combineModes.indexOf('concat')
  call(() =>
    binding().routerKernels.combine(
      streamOf(s.stream),
      concat,
      dtypeCode[dtype],
      from,
      w,
      null,
      null,
      tokens,
      width,
      topK,
      to,
    ),
  )
  return out
}

/** σ(x·weight) per row, f32. */
export function sharedGate(s: Scratch, dtype: FloatDType, x: Tensor, weight: Tensor): Tensor {
  const [tokens, width] = [sizeAt(x, 0), sizeAt(x, 1)]
  const scale = s.empty([tokens], 'f32')
  const [from, w, to] = [readOn(s.stream, x), readOn(s.stream, weight), bufferOf(scale)]
  call(() => binding().routerKernels.sharedGate(streamOf(s.stream), from, w, dtypeCode[dtype], tokens, width, to))
  return scale
}

export function cast(s: Scratch, from: Tensor, to: Tensor): void {
  const [source, target] = [readOn(s.stream, from), writeOn(s.stream, to)]
  const stream = streamOf(s.stream)
  call(() => binding().native.cast(stream, source, dtypeCode[from.dtype], target, dtypeCode[to.dtype], from.size))
}

/** One expert's MLP over rows [n, inputDim]: linear, activation, linear, each written to memory. */
export function expertMlp(
  s: Scratch,
  mlp: MlpSpec,
  expert: number,
  x: Tensor,
  weights: readonly Tensor[],
  biases: readonly (Tensor | null)[],
) {
  const n = sizeAt(x, 0)
  const code = dtypeCode[mlp.dtype]
  const stream = streamOf(s.stream)
  const shapes = linearShapes(mlp)
  const offsets = bufferOf(s.integers(Int32Array.of(0, n)))
  let rows = x
  for (const [layer, { rows: width, columns }] of shapes.entries()) {
    const weight = weights[layer]
    if (weight === undefined)
      throw new RangeError(`expected weights of ${shapes.length} linear layers, got ${weights.length}`)
    const product = s.empty([n, width], mlp.dtype)
    const [from, w, to] = [readOn(s.stream, rows), readOn(s.stream, weight), bufferOf(product)]
    const bias = readOrNull(s.stream, biases[layer])
    const [wAt, bAt] = [expert * width * columns, bias === null ? 0 : expert * width]
    call(() => binding().routerKernels.linear(stream, code, from, n, columns, width, w, wAt, bias, bAt, to, offsets))
    rows = product
    if (layer === shapes.length - 1) break
    const activated = s.empty([n, mlp.hiddenDim], mlp.dtype)
    const [before, after] = [bufferOf(product), bufferOf(activated)]
    const epilogue = epilogueCode[mlp.activation]
    call(() =>
      binding().routerKernels.activate(stream, code, epilogue, mlp.limit, mlp.alpha, before, n, mlp.hiddenDim, after),
    )
    rows = activated
  }
  return rows
}
