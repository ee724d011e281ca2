/** The sketch of use, as a user would write it. */
import { expect, test } from 'vitest'
import { combine, GroupedExperts, MoELayer, Router, routers, Tensor } from '../src/index.js'

test('one layer', async () => {
  await using layer = await MoELayer.create({ inputDim: 64, hiddenDim: 128, numExperts: 16, topK: 2, seed: 1 })
  const x = Tensor.randn([32, 64], { dtype: layer.dtype })
  const { output, stats } = await layer.forward(x)
  expect(output.shape).toEqual([32, 64])
  expect(stats.counts.reduce((a, b) => a + b, 0)).toBe(64)
  const y = layer.enqueue(x, { out: output })
  expect(y).toBe(output)
  for (const tensor of [x, output]) tensor.dispose()
})

test('the primitives, by hand: the same bits as the layer', async () => {
  const shape = { numExperts: 16, inputDim: 64, hiddenDim: 32, outputDim: 64, dtype: 'f32' } as const
  using weight = Tensor.randn([16, 64], { seed: 5, scale: 1 / 8 })
  using w1 = Tensor.randn([16, 64, 64], { seed: 6, scale: 1 / 8 })
  using w2 = Tensor.randn([16, 64, 32], { seed: 7, scale: 1 / 6 })
  using x = Tensor.randn([33, 64])

  using router = new Router({ ...routers.mixtral({ numExperts: 16, topK: 2 }), weight })
  using experts = new GroupedExperts({ ...shape, kind: 'gated', weights: [w1, w2] })
  using routed = router.route(x)
  using rows = experts.forward(x, routed)
  using y = combine(rows, routed)

  await using layer = await MoELayer.create({ ...shape, topK: 2, weights: { router: weight, experts: [w1, w2] } })
  using z = layer.enqueue(x)
  expect(await y.toArray()).toEqual(await z.toArray())
})
