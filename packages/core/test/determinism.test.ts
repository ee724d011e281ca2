/** The same bits on every run, whatever the interface, the stream and the number of threads. */
import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { cpuThreads, MoELayer, type MoELayerOptions, Stream, setCpuThreads, Tensor } from '../src/index.js'
import { layers } from './layers.js'

onEachDevice('bits', (device) => {
  for (const dtype of ['f32', 'bf16'] as const) {
    test.each(Object.entries(layers))(`%s in ${dtype}: enqueue, forward and a second run agree`, async (_, shape) => {
      await using layer = await MoELayer.create({ ...shape, dtype, device })
      using x = Tensor.randn([37, shape.inputDim], { dtype, device, seed: 1 })
      const { output } = await layer.forward(x)
      const expected = await output.toArray()
      for (let run = 0; run < 3; run++) {
        using again = layer.enqueue(x)
        expect(await again.toArray()).toEqual(expected)
      }
      await layer.forward(x, { out: output })
      expect(await output.toArray()).toEqual(expected)
      output.dispose()
    })
  }

  test('a stream of its own', async () => {
    const options: MoELayerOptions = { inputDim: 32, hiddenDim: 16, numExperts: 8, topK: 2, device }
    using stream = Stream.create({ device })
    await using own = await MoELayer.create({ ...options, stream })
    await using usual = await MoELayer.create(options)
    for (let seed = 0; seed < 10; seed++) {
      // Made on the default stream, read on the layer's: ordered without the host.
      using x = Tensor.randn([50, 32], { dtype: own.dtype, device, seed })
      using a = own.enqueue(x)
      using b = usual.enqueue(x)
      expect(await a.toArray()).toEqual(await b.toArray())
    }
  })

  test('50 steps queued without waiting, then one wait: each has its own result', async () => {
    await using layer = await MoELayer.create({ inputDim: 24, hiddenDim: 16, numExperts: 6, topK: 2, device })
    const inputs = Array.from({ length: 50 }, (_, seed) =>
      Tensor.randn([seed, 24], { dtype: layer.dtype, device, seed }),
    )
    const queued = inputs.map((x) => layer.enqueue(x))
    await Stream.default(device).synchronize()
    for (const [i, x] of inputs.entries()) {
      const { output } = await layer.forward(x)
      expect(await queued[i]?.toArray()).toEqual(await output.toArray())
      for (const tensor of [x, queued[i], output]) tensor?.dispose()
    }
  })

  test('concurrent forwards run in the order of the calls, and none disturbs another', async () => {
    await using layer = await MoELayer.create({ inputDim: 24, hiddenDim: 16, numExperts: 6, topK: 2, device })
    const inputs = Array.from({ length: 8 }, (_, seed) =>
      Tensor.randn([9 * seed, 24], { dtype: layer.dtype, device, seed }),
    )
    const together = await Promise.all(inputs.map((x) => layer.forward(x)))
    for (const [i, x] of inputs.entries()) {
      const alone = await layer.forward(x)
      expect(await together[i]?.output.toArray()).toEqual(await alone.output.toArray())
      expect(together[i]?.stats.counts).toEqual(alone.stats.counts)
      for (const tensor of [x, together[i]?.output, alone.output]) tensor?.dispose()
    }
  })

  test.runIf(device === 'cpu')('1, 2 and 3 threads', async () => {
    const before = cpuThreads()
    try {
      for (const shape of Object.values(layers)) {
        await using layer = await MoELayer.create({ ...shape, device })
        using x = Tensor.randn([65, shape.inputDim], { device, seed: 2 })
        const outputs = []
        for (const threads of [1, 2, 3]) {
          setCpuThreads(threads)
          using y = layer.enqueue(x)
          outputs.push(await y.toArray())
        }
        expect(outputs[1]).toEqual(outputs[0])
        expect(outputs[2]).toEqual(outputs[0])
      }
    } finally {
      setCpuThreads(before)
    }
  })
})
