/** Memory comes back, disposal is safe at any time, and use after it throws. */
import { expect, test } from 'vitest'
import { liveMemory, onEachDevice } from '../../router-kernels/test/support/devices.js'
import { BaselineMoELayer, MoELayer, type MoELayerOptions, Tensor } from '../src/index.js'
import { hostWeights } from './oracle.js'

onEachDevice('lifetime', (device) => {
  const options: MoELayerOptions = {
    inputDim: 32,
    hiddenDim: 24,
    numExperts: 6,
    topK: 2,
    shared: { hiddenDim: 8 },
    device,
  }
  const live = () => liveMemory(device)
  const disposed = expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' })

  test.each([
    ['MoELayer', MoELayer],
    ['BaselineMoELayer', BaselineMoELayer],
  ] as const)('%s: a loop of create, forward and dispose returns all memory', async (_, make) => {
    const before = await live()
    for (let i = 0; i < 15; i++) {
      await using layer = await make.create({ ...options, seed: i })
      const { output, routing } = await layer.forward(new Float32Array(32 * (i + 1)), { routing: true })
      for (const tensor of [output, routing?.expertIds, routing?.weights]) tensor?.dispose()
    }
    expect(await live()).toEqual(before)
  })

  test('a refused step, and a refused layer, return all memory', async () => {
    const before = await live()
    const { router, experts } = hostWeights({ ...options, shared: null }, 1)
    const wrong = [experts[0] ?? new Float32Array(), new Float32Array(3)]
    await expect(MoELayer.create({ ...options, shared: null, weights: { router, experts: wrong } })).rejects.toThrow(
      /experts\[1\]/,
    )
    const layer = await MoELayer.create(options)
    await expect(layer.forward(new Float32Array(33))).rejects.toThrow(/x/)
    using narrow = Tensor.zeros([4, 6], { device })
    await expect(layer.forward(new Float32Array(32), { logits: narrow })).rejects.toThrow(/logits/)
    narrow.dispose()
    const signal = AbortSignal.abort(new Error('no longer wanted'))
    await expect(layer.forward(new Float32Array(32), { signal })).rejects.toThrow('no longer wanted')
    layer.dispose()
    expect(await live()).toEqual(before)
  })

  test.each([
    ['MoELayer', MoELayer],
    ['BaselineMoELayer', BaselineMoELayer],
  ] as const)('%s: dispose during a forward in flight lets it finish', async (_, make) => {
    const before = await live()
    const layer = await make.create(options)
    using x = Tensor.randn([200, 32], { dtype: layer.config.experts.dtype, device })
    const { output: expected } = await layer.forward(x)
    const pending = [layer.forward(x), layer.forward(x)]
    await layer[Symbol.asyncDispose]()
    for (const { output } of await Promise.all(pending)) {
      expect(await output.toArray()).toEqual(await expected.toArray())
      output.dispose()
    }
    expected.dispose()
    x.dispose()
    expect(await live()).toEqual(before)
  })

  test('use after dispose throws; disposing twice is fine', async () => {
    const layer = await MoELayer.create(options)
    const baseline = await BaselineMoELayer.create({ weightsFrom: layer })
    using x = Tensor.zeros([1, 32], { dtype: layer.dtype, device })
    layer.dispose()
    layer.dispose()
    expect(layer.disposed).toBe(true)
    expect(() => layer.enqueue(x)).toThrow(disposed)
    expect(() => layer.performanceStats()).toThrow(disposed)
    await expect(layer.forward(x)).rejects.toThrow(disposed)
    // The baseline shares the weights: they live until it is gone too.
    const { output } = await baseline.forward(x)
    output.dispose()
    baseline.dispose()
    baseline.dispose()
    await expect(baseline.forward(x)).rejects.toThrow(disposed)
    await expect(BaselineMoELayer.create({ weightsFrom: layer })).rejects.toThrow(disposed)
  })

  test('a disposed input is refused', async () => {
    using layer = await MoELayer.create(options)
    const x = Tensor.zeros([1, 32], { dtype: layer.dtype, device })
    x.dispose()
    expect(() => layer.enqueue(x)).toThrow(disposed)
  })

  test('adopted weights go with the layer, also when create rejects', async () => {
    const shape: MoELayerOptions = { inputDim: 4, hiddenDim: 3, numExperts: 2, topK: 1, dtype: 'f32', device }
    const make = (columns: number) => [Tensor.zeros([2, 6, columns], { device }), Tensor.zeros([2, 4, 3], { device })]
    const before = await live()
    const layer = await MoELayer.create({
      ...shape,
      weights: { router: new Float32Array(8), experts: make(4) },
      adoptWeights: true,
    })
    layer.dispose()
    expect(await live()).toEqual(before)
    const rejected = MoELayer.create({ ...shape, weights: { experts: make(5) }, adoptWeights: true })
    await expect(rejected).rejects.toThrow(/weights\.experts\[0\].*\[2, 6, 4\].*\[2, 6, 5\]/)
    expect(await live()).toEqual(before)
  })
})
