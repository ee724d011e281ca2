/** Both layers against the float64 oracle, and against each other. */
import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { normal, relativeError, testSeed, tolerance } from '../../router-kernels/test/support/random.js'
import { BaselineMoELayer, MoELayer, Tensor } from '../src/index.js'
import { layers } from './layers.js'
import { hostWeights, layerOracle } from './oracle.js'

onEachDevice(`MoELayer and BaselineMoELayer (seed ${testSeed})`, (device) => {
  for (const dtype of ['f32', 'bf16', 'f16'] as const) {
    test.each(Object.entries(layers))(`%s in ${dtype}: the oracle's output, experts and counts`, async (_, shape) => {
      const options = { ...shape, dtype, device }
      const weights = hostWeights(options, 1)
      await using layer = await MoELayer.create({ ...options, weights })
      await using baseline = await BaselineMoELayer.create({ weightsFrom: layer })
      // One error over all batches: a single token's few outputs can cancel to nearly nothing, and then rounding looks large.
      const results = new Map([layer, baseline].map((one) => [one, { got: [] as number[], wanted: [] as number[] }]))
      for (const tokens of [0, 1, 3, 33]) {
        const x = normal(tokens, tokens * shape.inputDim, 1, dtype)
        for (const one of [layer, baseline]) {
          const { output, stats, routing } = await one.forward(x, { routing: true })
          expect(output).toMatchObject({ shape: [tokens, layer.outputWidth], dtype, device })
          const ids = await routing?.expertIds.toArray()
          const expected = layerOracle(options, weights, x, null, ids)
          expect(ids).toEqual(expected.ids)
          const got = await routing?.weights.toFloat32Array()
          expect(relativeError(got ?? [], expected.weights)).toBeLessThan(1e-5)
          results.get(one)?.got.push(...(await output.toFloat32Array()))
          results.get(one)?.wanted.push(...expected.output)
          expect(stats).toMatchObject({ tokens, counts: expected.counts })
          for (const tensor of [output, routing?.expertIds, routing?.weights]) tensor?.dispose()
        }
      }
      for (const { got, wanted } of results.values()) {
        expect(wanted).toHaveLength(37 * layer.outputWidth)
        expect(relativeError(got, wanted)).toBeLessThan(tolerance[dtype])
      }
    })
  }

  test('given logits take the place of the router: all tokens to one expert, masked experts never', async () => {
    const options = { inputDim: 12, hiddenDim: 9, numExperts: 5, topK: 1, dtype: 'f32', device } as const
    const weights = hostWeights(options, 2)
    const tokens = 29
    const values = Float32Array.from({ length: tokens * 5 }, (_, i) => (i % 5 === 3 ? 0 : Number.NEGATIVE_INFINITY))
    const x = normal(3, tokens * 12)
    const expected = layerOracle(options, weights, x, values)
    await using layer = await MoELayer.create({ ...options, weights })
    await using baseline = await BaselineMoELayer.create({ ...options, weightsFrom: layer })
    using logits = Tensor.from(values, [tokens, 5], { device })
    for (const one of [layer, baseline]) {
      const { output, stats } = await one.forward(x, { logits })
      expect([...stats.counts]).toEqual([0, 0, 0, tokens, 0])
      expect(stats).toMatchObject({ activeExperts: 1, loadImbalance: 5 })
      expect(relativeError(await output.toFloat32Array(), expected.output)).toBeLessThan(1e-5)
      output.dispose()
    }
  })

  test('a layer without a router weight takes logits, and asks for them by name', async () => {
    const options = { inputDim: 4, hiddenDim: 3, numExperts: 2, topK: 1, dtype: 'f32', device } as const
    const { router, ...rest } = hostWeights(options, 4)
    await using layer = await MoELayer.create({ ...options, weights: rest })
    await expect(layer.forward(new Float32Array(8))).rejects.toThrow(/logits/)
    using logits = Tensor.zeros([2, 2], { device })
    const { output } = await layer.forward(new Float32Array(8), { logits })
    output.dispose()
    expect(router.length).toBe(8)
  })

  test('router biases: routerBias moves the logits, selectBias the choice alone', async () => {
    const options = {
      inputDim: 8,
      hiddenDim: 6,
      numExperts: 6,
      topK: 2,
      dtype: 'f32',
      device,
      router: { score: 'sigmoid' },
    } as const
    const weights = { ...hostWeights(options, 5), routerBias: normal(1, 6), selectBias: normal(2, 6) }
    const x = normal(6, 21 * 8)
    await using layer = await MoELayer.create({ ...options, weights })
    const { output, routing } = await layer.forward(x, { routing: true })
    const ids = await routing?.expertIds.toArray()
    const expected = layerOracle(options, weights, x, null, ids)
    expect(ids).toEqual(expected.ids)
    expect(relativeError(await output.toFloat32Array(), expected.output)).toBeLessThan(1e-5)
    for (const tensor of [output, routing?.expertIds, routing?.weights]) tensor?.dispose()
  })

  test('weights as tensors of another dtype are converted; the caller keeps them', async () => {
    const options = { inputDim: 8, hiddenDim: 6, numExperts: 3, topK: 2, dtype: 'bf16', device } as const
    const host = hostWeights(options, 7)
    const x = normal(8, 5 * 8, 1, 'bf16')
    const shapes = [
      [3, 12, 8],
      [3, 8, 6],
    ]
    const experts = host.experts.map((data, i) => Tensor.from(data, shapes[i] ?? [], { dtype: 'f16', device }))
    await using layer = await MoELayer.create({ ...options, weights: { router: host.router, experts } })
    expect(experts.map((t) => t.disposed)).toEqual([false, false])
    for (const tensor of experts) tensor.dispose()
    const { output } = await layer.forward(x)
    expect(relativeError(await output.toFloat32Array(), layerOracle(options, host, x).output)).toBeLessThan(1e-2)
    output.dispose()
  })

  test('random weights: each tensor has numbers of its own, also those of neighbouring seeds', async () => {
    // All fan-ins are 16, so that one generator used twice would show as equal first values.
    const sizes = { inputDim: 16, hiddenDim: 16, numExperts: 4, topK: 2, bias: true } as const
    const starts: string[] = []
    for (const seed of [0, 1, 2]) {
      const shared = { hiddenDim: 16, gate: true, bias: true }
      await using layer = await MoELayer.create({ ...sizes, shared, seed, dtype: 'f32', device })
      const { router, experts, expertBiases, shared: dense, sharedBiases, sharedGate } = layer.weights
      for (const tensor of [router, ...experts, ...expertBiases, ...dense, ...sharedBiases, sharedGate]) {
        starts.push(String((await tensor?.toFloat32Array())?.slice(0, 4)))
      }
    }
    expect(starts).toHaveLength(30)
    expect(new Set(starts).size).toBe(30)
  })

  test('the same seed makes the same layer in both classes, another seed another one', async () => {
    const options = { inputDim: 16, hiddenDim: 8, numExperts: 4, topK: 2, dtype: 'f32', device } as const
    const x = normal(9, 7 * 16)
    const outputs: Float32Array[] = []
    for (const [make, seed] of [
      [MoELayer, 3],
      [BaselineMoELayer, 3],
      [MoELayer, 4],
    ] as const) {
      await using layer = await make.create({ ...options, seed })
      const { output } = await layer.forward(x)
      outputs.push(await output.toFloat32Array())
      output.dispose()
    }
    const [first = [], baseline = [], other = []] = outputs
    expect(relativeError(baseline, first)).toBeLessThan(1e-5)
    expect(relativeError(other, first)).toBeGreaterThan(0.1)
  })
})
