/** Everything wrong is refused before anything is enqueued, and the message names it. */
import { describe, expect, test } from 'vitest'
import { cudaMissing } from '../../router-kernels/test/support/devices.js'
import { BaselineMoELayer, MoELayer, type MoELayerOptions, Tensor } from '../src/index.js'

const good: MoELayerOptions = { inputDim: 4, hiddenDim: 3, numExperts: 4, topK: 2, device: 'cpu' }

describe('MoELayer.create refuses by name', () => {
  test.each([
    ['an unknown option', { experts: 4 }, TypeError, /experts/],
    ['a missing dimension', { inputDim: undefined }, TypeError, /inputDim.*undefined/],
    ['a fraction', { hiddenDim: 1.5 }, RangeError, /hiddenDim.*1\.5/],
    ['no output', { outputDim: 0 }, RangeError, /outputDim.*0/],
    ['too many experts', { numExperts: 1025 }, RangeError, /numExperts.*1025/],
    ['more chosen than there are', { topK: 5 }, RangeError, /topK.*5/],
    ['an unknown kind', { kind: 'dense' }, RangeError, /kind.*dense/],
    ["another kind's activation", { kind: 'three-layer', activation: 'gelu' }, RangeError, /activation.*gelu/],
    ['an unknown step of the router', { router: { softmax: true } }, TypeError, /router.*softmax/],
    ['a router for other experts', { router: { numExperts: 8 } }, RangeError, /router\.numExperts.*4.*8/],
    ['an unknown combination', { combine: 'sum' }, RangeError, /combine.*sum/],
    ['a flag that is none', { scaleInput: 1 }, TypeError, /scaleInput.*1/],
    ['a shared expert beside concat', { combine: 'concat', shared: { hiddenDim: 2 } }, TypeError, /shared.*concat/],
    ['an unknown option of the shared expert', { shared: { hidden: 2 } }, TypeError, /shared.*hidden/],
    ['a shared expert of no width', { shared: { hiddenDim: 0 } }, RangeError, /shared\.hiddenDim.*0/],
    ['an integer dtype', { dtype: 'i32' }, RangeError, /dtype.*i32/],
    ['an unknown device', { device: 'tpu' }, TypeError, /device.*tpu/],
    ['a negative seed', { seed: -1 }, RangeError, /seed.*-1/],
    ['an unknown weight', { weights: { gate: new Float32Array(1), experts: [] } }, TypeError, /weights.*gate/],
    ['weights without experts', { weights: {} }, TypeError, /weights\.experts/],
    ['a matrix too few', { weights: { experts: [new Float32Array(96)] } }, RangeError, /weights\.experts.*2.*1/],
    [
      'a matrix of another size',
      { weights: { experts: [new Float32Array(95), new Float32Array(48)] } },
      RangeError,
      /weights\.experts\[0\].*96.*95/,
    ],
    [
      'a selectBias beside sparsemixer',
      {
        router: { weigh: 'sparsemixer' },
        weights: { experts: [new Float32Array(96), new Float32Array(48)], selectBias: new Float32Array(4) },
      },
      TypeError,
      /weights\.selectBias.*sparsemixer/,
    ],
    [
      'a shared expert without weights',
      { shared: { hiddenDim: 2 }, weights: { experts: [new Float32Array(96), new Float32Array(48)] } },
      TypeError,
      /weights\.shared/,
    ],
    [
      'weights of a shared expert that is not there',
      { weights: { experts: [new Float32Array(96), new Float32Array(48)], shared: [] } },
      TypeError,
      /weights\.shared/,
    ],
  ])('%s', async (_, options, type, message) => {
    const made = MoELayer.create({ ...good, ...(options as object) })
    await expect(made).rejects.toThrow(type)
    await expect(made).rejects.toThrow(message)
  })

  test.runIf(cudaMissing !== null)('CUDA where there is none, with the reason', async () => {
    const made = MoELayer.create({ ...good, device: 'cuda' })
    await expect(made).rejects.toMatchObject({ code: 'ERR_NEXUS_UNSUPPORTED', message: cudaMissing })
  })
})

describe.each([
  ['MoELayer', MoELayer],
  ['BaselineMoELayer', BaselineMoELayer],
] as const)('%s.forward refuses by name', (_, make) => {
  const f32 = (...shape: number[]) => Tensor.zeros(shape, { device: 'cpu' })
  test.each([
    ['x of another width', () => [f32(3, 5)], RangeError, /x .*\[tokens, 4\].*\[3, 5\]/],
    ['x of another rank', () => [f32(4)], RangeError, /x .*\[4\]/],
    ['x of another dtype', () => [Tensor.zeros([3, 4], { dtype: 'bf16', device: 'cpu' })], TypeError, /x .*f32.*bf16/],
    ['x of a broken row', () => [new Float32Array(6)], RangeError, /x .*4.*6/],
    ['x that is neither', () => [[1, 2, 3, 4]], TypeError, /x .*Tensor/],
    ['logits of another shape', () => [f32(3, 4), { logits: f32(3, 3) }], RangeError, /logits.*\[3, 4\].*\[3, 3\]/],
    [
      'logits of another dtype',
      () => [f32(3, 4), { logits: Tensor.zeros([3, 4], { dtype: 'i32', device: 'cpu' }) }],
      TypeError,
      /logits.*f32.*i32/,
    ],
    ['out of another shape', () => [f32(3, 4), { out: f32(4, 4) }], RangeError, /out.*\[3, 4\].*\[4, 4\]/],
    [
      'out of another dtype',
      () => [f32(3, 4), { out: Tensor.zeros([3, 4], { dtype: 'f16', device: 'cpu' }) }],
      TypeError,
      /out.*f32.*f16/,
    ],
    ['an unknown option', () => [f32(3, 4), { output: f32(3, 4) }], TypeError, /output/],
    ['a routing that is no flag', () => [f32(3, 4), { routing: 'all' }], TypeError, /routing/],
    ['a signal that is none', () => [f32(3, 4), { signal: {} }], TypeError, /signal/],
  ])('%s', async (_, given, type, message) => {
    await using layer = await make.create(good)
    const [x, options] = given() as [Tensor, object]
    const step = layer.forward(x, options)
    await expect(step).rejects.toThrow(type)
    await expect(step).rejects.toThrow(message)
  })
})

test('BaselineMoELayer.create refuses options that differ from those of weightsFrom', async () => {
  await using layer = await MoELayer.create(good)
  await using same = await BaselineMoELayer.create({ ...good, weightsFrom: layer })
  expect(same.config).toEqual(layer.config)
  await expect(BaselineMoELayer.create({ hiddenDim: 5, weightsFrom: layer })).rejects.toThrow(/experts.*weightsFrom/)
  await expect(BaselineMoELayer.create({ router: { scale: 2 }, weightsFrom: layer })).rejects.toThrow(
    /rule.*weightsFrom/,
  )
})

test('options that are left out are named, not destructured', async () => {
  const create = MoELayer.create as (options?: unknown) => Promise<MoELayer>
  await expect(create.call(MoELayer)).rejects.toThrow(/MoELayer options.*object of options.*undefined/)
  const baseline = BaselineMoELayer.create as (options?: unknown) => Promise<BaselineMoELayer>
  await expect(baseline.call(BaselineMoELayer)).rejects.toThrow(/BaselineMoELayer options.*undefined/)
  await expect(baseline.call(BaselineMoELayer, { ...good, topk: 2 })).rejects.toThrow(/topk.*topK/)
})

test('bias: true with weights that have no biases is refused for every kind', async () => {
  const matrix = (rows: number, columns: number) => new Float32Array(good.numExperts * rows * columns)
  const { inputDim, hiddenDim } = good
  const experts = [matrix(hiddenDim, inputDim), matrix(hiddenDim, hiddenDim), matrix(inputDim, hiddenDim)]
  const options = { ...good, kind: 'three-layer', weights: { router: matrix(1, inputDim), experts } } as const
  await expect(MoELayer.create({ ...options, bias: true })).rejects.toThrow(/weights.expertBiases.*bias is true/)
  await using layer = await MoELayer.create(options)
  expect(layer.disposed).toBe(false)
})
