/** The sketch of use, as a user would write it. */
import { expect, test } from 'vitest'
import {
  combine,
  describeDevice,
  GroupedExperts,
  isTensor,
  MoELayer,
  policies,
  Router,
  routers,
  SliceEnforcer,
  SliceManager,
  schedule,
  Tensor,
} from '../src/index.js'

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

test('a layer that schedules its steps', async () => {
  const shape = { inputDim: 64, hiddenDim: 128, numExperts: 16, topK: 2, seed: 1 }
  await using plain = await MoELayer.create(shape)
  await using layer = await MoELayer.create({
    ...shape,
    slices: { policy: policies.adaptive() },
    graphs: true,
    energy: true,
  })
  using x = Tensor.randn([32, 64], { dtype: layer.dtype })
  using expected = plain.enqueue(x)
  for (let i = 0; i < 40; i++) {
    using y = layer.enqueue(x)
    expect(await y.toArray()).toEqual(await expected.toArray())
  }
  expect(layer.plan.reason).toMatch(new RegExp(`^${layer.plan.strategy}`))
  const { slices, streams, graphs } = layer.performanceStats()
  expect(slices?.plan.slices.length).toBeGreaterThan(0)
  expect(streams).toBeNull()
  expect(graphs?.hits).toBeGreaterThan(0)
})

test('two layers at once, each in its slice', async () => {
  await using decode = await MoELayer.create({ inputDim: 64, hiddenDim: 128, numExperts: 16, topK: 2 })
  await using prefill = await MoELayer.create({ inputDim: 32, hiddenDim: 64, numExperts: 4, topK: 1 })
  using few = Tensor.randn([4, 64], { dtype: decode.dtype })
  using many = Tensor.randn([300, 32], { dtype: prefill.dtype })
  const device = describeDevice(decode.device)
  const portion = Math.max(device.granularity, device.minSms)
  using enforcer = new SliceEnforcer({ device: decode.device })
  using manager = new SliceManager({ device, numExperts: 0, enforcer })
  manager.allocate({ name: 'decode', sms: portion })
  manager.allocate({ name: 'prefill', sms: 3 * portion })
  using steps = schedule(manager.plan, {
    partition: enforcer.partition(manager.plan),
    tenants: [
      { name: 'decode', layer: decode, x: few },
      { name: 'prefill', layer: prefill, x: many },
    ],
  })
  const { tenants } = await steps.run()
  using step = steps.tenant('decode').enqueue(few)
  for (const value of [...tenants.map((each) => each.value), await step.done()]) {
    if (!isTensor(value)) throw new TypeError('expected a tensor')
    expect((await value.toFloat32Array()).some((v) => v !== 0)).toBe(true)
    value.dispose()
  }
})
