/**
 * The one file of the benchmarks that touches the native binding, for what the public API does not have: reads of a part of a tensor, single
 * linear layers by a kernel variant of one's choice, and a router's product into a tensor that is there.
 */
import type { Stream, Tensor } from '@nexus/core'
import {
  binding,
  bufferOf,
  call,
  callAsync,
  dtypeBytes,
  dtypeCode,
  streamOf,
  tensorStream,
} from '@nexus/native/binding'

/**
 * Elements of a tensor from `first` on, as float32, behind what is queued for it.
 * @throws RangeError when they are not all in the tensor
 */
export async function readPart(tensor: Tensor, first: number, count: number): Promise<Float32Array> {
  if (first < 0 || count < 0 || first + count > tensor.size) {
    throw new RangeError(`first, count: got ${first} and ${count}, the tensor has ${tensor.size} elements`)
  }
  const { dtype } = tensor
  const [stream, buffer] = [streamOf(tensorStream(tensor)), bufferOf(tensor)]
  const part = await callAsync((b) =>
    b.native.download(stream, buffer, first * dtypeBytes[dtype], count, dtypeCode[dtype], 'f32'),
  )
  if (!(part instanceof Float32Array)) throw new TypeError('the addon returned another array than a Float32Array')
  return part
}

/** One grouped linear layer of gated experts in bf16: the first, [2·inter, hidden] with the activation behind it, or the second. */
export interface Linear {
  readonly experts: number
  /** Columns of its input, and rows of an expert's matrix. */
  readonly k: number
  readonly n: number
  readonly first: boolean
}

/** `Epilogue` in experts.h. */
const epilogues = { identity: 0, swiglu: 16 } as const

const describeLinear = ({ experts, k, n, first }: Linear) => ({
  dtype: dtypeCode.bf16,
  experts,
  k,
  n,
  epilogue: first ? epilogues.swiglu : epilogues.identity,
  limit: 7,
  alpha: 1.702,
})

/** Variants that compute a linear layer for so many rows, and which of them runs by itself; `null` with an addon that names none. */
export function variantsOf(device: 'cpu' | 'cuda', linear: Linear, rows: number) {
  const { routerKernels } = binding()
  if (typeof routerKernels.candidates !== 'function') return null
  const found = call(() => routerKernels.candidates(device === 'cpu' ? -1 : 0, describeLinear(linear), rows))
  return found.map(({ name, heuristic }) => ({ name, chosen: heuristic }))
}

/** What a linear layer reads and writes. */
export interface LinearTensors {
  /** Of tokens for a first layer, of rows in the buckets' order for a second. */
  readonly input: Tensor
  readonly weight: Tensor
  readonly offsets: Tensor
  readonly order: Tensor
  /** In the buckets' order after a first layer, in slot order after a second. */
  readonly output: Tensor
}

/** Queues a linear layer by the variant of that name; the tensors must have been written on the same stream. */
export function runLinear(
  stream: Stream,
  linear: Linear,
  { rows, topK, variant }: { readonly rows: number; readonly topK: number; readonly variant: string },
  { input, weight, offsets, order, output }: LinearTensors,
): void {
  const { first } = linear
  call(({ routerKernels }) =>
    routerKernels.groupedLinear(
      streamOf(stream),
      describeLinear(linear),
      rows,
      first ? topK : 1,
      first,
      !first,
      bufferOf(input),
      bufferOf(weight),
      0,
      bufferOf(offsets),
      bufferOf(order),
      bufferOf(output),
      variant,
    ),
  )
}

/** Queues a router's own product: out[t, e] = Σₕ x[t, h]·weight[e, h]; the tensors must have been written on the same stream. */
export function runProduct(stream: Stream, x: Tensor, weight: Tensor, out: Tensor): void {
  const [tokens = 0, hidden = 0] = x.shape
  const [experts = 0] = weight.shape
  call(({ routerKernels }) =>
    routerKernels.routerLogits(
      streamOf(stream),
      bufferOf(x),
      dtypeCode[x.dtype],
      bufferOf(weight),
      dtypeCode[weight.dtype],
      null,
      tokens,
      hidden,
      experts,
      bufferOf(out),
    ),
  )
}
