/**
 * The comparison of `same-bits.test.ts` can fail: mutants that a strategy might introduce, made from the layer's own rows by the same kernels,
 * differ in some byte. Each has a control that is made in the same way without the mutation, and does not.
 */
import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { combine, type DeviceName, GroupedExperts, MoELayer, type RoutedTokens, Router, Tensor } from '../src/index.js'
import { hostWeights } from './oracle.js'

const shape = { inputDim: 24, hiddenDim: 32, outputDim: 20, numExperts: 6, topK: 4, dtype: 'f32' } as const
const tokens = 40

const bytesOf = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
const differing = (a: Uint8Array, b: Uint8Array): number => a.reduce((n, byte, i) => n + (byte === b[i] ? 0 : 1), 0)

/** The layer's output, and the routing and rows that it is combined from. */
async function parts(device: DeviceName) {
  const weights = hostWeights({ ...shape, device: 'cpu' }, 3)
  const layer = await MoELayer.create({ ...shape, device, weights })
  const x = Tensor.randn([tokens, shape.inputDim], { device, seed: 5 })
  const { output } = await layer.forward(x)
  const router = Tensor.from(weights.router, [shape.numExperts, shape.inputDim], { device })
  const routed = new Router({ ...layer.config.rule, weight: router, device }).route(x)
  return { x, routed, weights, expected: bytesOf(await output.toArray()) }
}

type Parts = Awaited<ReturnType<typeof parts>>

/** Rows [tokens·topK, outputDim] of experts that have the hidden units from `first` on, `width` of them. */
async function rowsOf({ x, routed, weights }: Parts, first: number, width: number, device: DeviceName) {
  const { topK, ...sizes } = shape
  const { numExperts, inputDim, hiddenDim, outputDim } = sizes
  const [up, down] = weights.experts
  if (up === undefined || down === undefined) throw new RangeError('two matrices were expected')
  const some = new Float32Array(numExperts * 2 * width * inputDim)
  const last = new Float32Array(numExperts * outputDim * width)
  for (let e = 0; e < numExperts; e++) {
    const from = (e * hiddenDim + first) * 2 * inputDim
    some.set(up.subarray(from, from + 2 * width * inputDim), e * 2 * width * inputDim)
    for (let row = 0; row < outputDim; row++) {
      const at = (e * outputDim + row) * hiddenDim + first
      last.set(down.subarray(at, at + width), (e * outputDim + row) * width)
    }
  }
  using experts = new GroupedExperts({
    kind: 'gated',
    ...sizes,
    hiddenDim: width,
    device,
    weights: [
      Tensor.from(some, [numExperts, 2 * width, inputDim], { device }),
      Tensor.from(last, [numExperts, outputDim, width], { device }),
    ],
  })
  return experts.forward(x, routed).toFloat32Array()
}

async function combined(rows: Float32Array, routed: RoutedTokens, device: DeviceName): Promise<Uint8Array> {
  const on = Tensor.from(rows, [tokens * shape.topK, shape.outputDim], { device })
  return bytesOf(await combine(on, routed).toArray())
}

onEachDevice('mutants', (device) => {
  test('a reversed combine order is seen', async () => {
    const made = await parts(device)
    const rows = await rowsOf(made, 0, shape.hiddenDim, device)
    // The control: the same primitives in slot order are the layer, byte for byte.
    expect(differing(await combined(rows, made.routed, device), made.expected)).toBe(0)
    const { topK, outputDim } = shape
    const weights = await made.routed.weights.toFloat32Array()
    const [rowsBack, weightsBack] = [new Float32Array(rows.length), new Float32Array(weights.length)]
    for (let t = 0; t < tokens; t++) {
      for (let j = 0; j < topK; j++) {
        const [from, to] = [t * topK + j, t * topK + topK - 1 - j]
        rowsBack.set(rows.subarray(from * outputDim, (from + 1) * outputDim), to * outputDim)
        weightsBack[to] = weights[from] ?? 0
      }
    }
    const reversed = { ...made.routed, weights: Tensor.from(weightsBack, [tokens, topK], { device }) }
    expect(differing(await combined(rowsBack, reversed, device), made.expected)).toBeGreaterThan(0)
  })

  test.each([2, 4, 8])('a sum that is split among %i SMs is seen', async (sms) => {
    const made = await parts(device)
    const width = shape.hiddenDim / sms
    const sum = new Float32Array(tokens * shape.topK * shape.outputDim)
    for (let part = 0; part < sms; part++) {
      const rows = await rowsOf(made, part * width, width, device)
      for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] ?? 0) + (rows[i] ?? 0)
    }
    const split = await combined(sum, made.routed, device)
    expect(differing(split, made.expected)).toBeGreaterThan(0)
    // It is the same sum, in another order: the values agree to rounding.
    const [got, want] = [new Float32Array(split.buffer), new Float32Array(made.expected.buffer)]
    for (const [i, value] of got.entries()) expect(value).toBeCloseTo(want[i] ?? Number.NaN, 4)
  })
})
