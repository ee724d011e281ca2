import { Stream, Tensor } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { GroupedExperts, Router, type RouterRule, routers } from '../src/index.js'
import { liveMemory, onEachDevice } from './support/devices.js'
import { normal, relativeError, testSeed } from './support/random.js'
import { logitsOracle, routeOracle } from './support/router-oracle.js'

const rules: Record<string, RouterRule> = {
  mixtral: routers.mixtral({ numExperts: 8, topK: 2 }),
  'qwen2Moe, 60 experts': routers.qwen2Moe({ numExperts: 60, topK: 4 }),
  'qwen3Moe, 128 experts': routers.qwen3Moe({ numExperts: 128, topK: 8 }),
  olmoe: routers.olmoe({ numExperts: 64, topK: 8 }),
  minimax: routers.minimax({ numExperts: 32, topK: 2 }),
  jamba: routers.jamba({ numExperts: 16, topK: 2 }),
  'deepseekV2, greedy': routers.deepseekV2({ numExperts: 64, topK: 6 }),
  'deepseekV2, groups': routers.deepseekV2({ numExperts: 160, topK: 6, groups: { count: 8, keep: 3 }, scale: 16 }),
  deepseekV3: routers.deepseekV3({ numExperts: 256, topK: 8, groups: { count: 8, keep: 4 } }),
  kimi: routers.kimi({ numExperts: 384, topK: 8 }),
  glm4Moe: routers.glm4Moe({ numExperts: 128, topK: 8 }),
  dots1: routers.dots1({ numExperts: 128, topK: 6 }),
  gptOss: routers.gptOss({ numExperts: 32, topK: 4 }),
  llama4: routers.llama4({ numExperts: 16, topK: 1 }),
  granite: routers.granite({ numExperts: 40, topK: 8 }),
  ernie45: routers.ernie45({ numExperts: 64, topK: 6 }),
  qwen3Next: routers.qwen3Next({ numExperts: 512, topK: 10 }),
  phiMoe: routers.phiMoe({ numExperts: 16, topK: 2 }),
  'one expert': { numExperts: 1, topK: 1 },
  'a prime number of experts, all chosen': { numExperts: 31, topK: 31 },
  '1024 experts, 32 of them': { numExperts: 1024, topK: 32 },
}
const withBias = new Set(['deepseekV3', 'kimi', 'glm4Moe', 'dots1', 'ernie45'])

onEachDevice(`Router.route (seed ${testSeed})`, (device) => {
  for (const [name, rule] of Object.entries(rules)) {
    test.each([0, 1, 3, 33])(`${name}: %i tokens as the float64 oracle says`, async (tokens) => {
      const { numExperts, topK } = rule
      const values = normal(tokens + numExperts, tokens * numExperts)
      const selectBias = withBias.has(name) ? normal(7, numExperts, 0.1) : null
      using router = new Router({ ...rule, selectBias, device })
      using logits = Tensor.from(values, [tokens, numExperts], { device })
      using routed = router.route(null, logits)

      expect(routed).toMatchObject({ tokens, topK, numExperts })
      expect(routed.expertIds.shape).toEqual([tokens, topK])
      const ids = await routed.expertIds.toArray()
      const expected = routeOracle(rule, values, tokens, selectBias, ids)
      expect(ids).toEqual(expected.ids)
      expect(relativeError(await routed.weights.toFloat32Array(), expected.weights)).toBeLessThan(1e-5)
      expect(await routed.counts.toArray()).toEqual(expected.counts)
      expect(await routed.offsets.toArray()).toEqual(expected.offsets)
      expect(await routed.order.toArray()).toEqual(expected.order)
    })
  }

  test('equal logits: the lower expert index wins', async () => {
    using router = new Router({ numExperts: 7, topK: 3, device })
    using logits = Tensor.from([0, 1, 1, 0, 1, 1, 0, 2, 2, 2, 2, 2, 2, 2], [2, 7], { device })
    using routed = router.route(null, logits)
    expect([...(await routed.expertIds.toArray())]).toEqual([1, 2, 4, 0, 1, 2])
  })

  test('equal groups: the lower group wins', async () => {
    const rule = routers.deepseekV2({ numExperts: 6, topK: 2, groups: { count: 3, keep: 1 } })
    using router = new Router({ ...rule, device })
    using logits = Tensor.from([1, 0, 0, 1, 1, 0], [1, 6], { device })
    using routed = router.route(null, logits)
    expect([...(await routed.expertIds.toArray())]).toEqual([0, 1])
  })

  test('non-finite logits choose valid experts: a masked one weighs 0, +∞ takes all', async () => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    using router = new Router({ numExperts: 4, topK: 2, device })
    using logits = Tensor.from([nan, 1, -inf, nan, inf, 0, 0, 0, -inf, -inf, -inf, -inf], [3, 4], { device })
    using routed = router.route(null, logits)
    expect([...(await routed.expertIds.toArray())]).toEqual([1, 0, 0, 1, 0, 1])
    expect([...(await routed.weights.toFloat32Array())]).toEqual([1, 0, 1, 0, 0.5, 0.5])
  })

  test.each([
    ['f32', 'f32'],
    ['bf16', 'bf16'],
    ['f16', 'f16'],
    ['bf16', 'f32'],
    ['f16', 'f32'],
  ] as const)('its own product: %s tokens, %s weight, with bias, at odd sizes', async (dtype, weightDtype) => {
    for (const [tokens, inputDim, numExperts] of [
      [0, 5, 3],
      [3, 1, 1],
      [1, 67, 13],
      [33, 67, 13],
      [7, 256, 64],
    ] as const) {
      const values = normal(1, tokens * inputDim, 1, dtype)
      const matrix = normal(2, numExperts * inputDim, 1, weightDtype)
      const bias = normal(3, numExperts)
      using weight = Tensor.from(matrix, [numExperts, inputDim], { dtype: weightDtype, device })
      using x = Tensor.from(values, [tokens, inputDim], { dtype, device })
      using router = new Router({ numExperts, topK: 1, weight, bias })
      using logits = router.logits(x)
      expect(logits.shape).toEqual([tokens, numExperts])
      const expected = logitsOracle(values, matrix, bias, tokens, numExperts)
      expect(relativeError(await logits.toFloat32Array(), expected)).toBeLessThan(1e-5)
    }
  })

  test('route(x) is route(null, logits(x)), bit for bit', async () => {
    using weight = Tensor.randn([11, 32], { device })
    using x = Tensor.randn([19, 32], { device, seed: 1 })
    using router = new Router({ numExperts: 11, topK: 3, weight })
    using logits = router.logits(x)
    using own = router.route(x)
    using given = router.route(x, logits)
    for (const part of ['expertIds', 'weights', 'counts', 'offsets', 'order'] as const) {
      expect(await own[part].toArray()).toEqual(await given[part].toArray())
    }
  })

  test('on a stream of its own it waits for the streams that fill its tensors', async () => {
    using stream = Stream.create({ device })
    using weight = Tensor.randn([16, 512], { device, seed: 1 })
    using own = new Router({ numExperts: 16, topK: 2, weight, stream })
    using usual = new Router({ numExperts: 16, topK: 2, weight })
    for (let seed = 2; seed < 6; seed++) {
      using x = Tensor.randn([4000, 512], { device, seed })
      using there = own.route(x)
      using here = usual.route(x)
      expect(await there.weights.toArray()).toEqual(await here.weights.toArray())
      expect(await there.order.toArray()).toEqual(await here.order.toArray())
    }
  })

  test('gives back all memory', async () => {
    const before = await liveMemory(device)
    for (let i = 0; i < 20; i++) {
      using weight = Tensor.randn([11, 32], { device })
      using x = Tensor.randn([19, 32], { device })
      using router = new Router({ numExperts: 11, topK: 3, weight, bias: new Float32Array(11) })
      using routed = router.route(x)
      await routed.counts.toArray()
    }
    expect(await liveMemory(device)).toEqual(before)
  })
})

describe('Router refuses by name', () => {
  const make = (options: object) => () => new Router({ numExperts: 8, topK: 2, device: 'cpu', ...options })
  test.each([
    ['an unknown option', { topk: 2 }, TypeError, /topk.*topK/],
    ['no experts', { numExperts: 0 }, RangeError, /numExperts/],
    ['1025 experts', { numExperts: 1025 }, RangeError, /numExperts.*1025/],
    ['more than 32 of them', { numExperts: 64, topK: 33 }, RangeError, /topK.*33/],
    ['more than there are', { topK: 9 }, RangeError, /topK.*9/],
    ['an unknown score', { score: 'tanh' }, RangeError, /score.*tanh/],
    ['an unknown weighing', { weigh: 'softmax' }, RangeError, /weigh/],
    ['an unknown normalisation', { normalize: true }, TypeError, /normalize/],
    ['an infinite scale', { scale: Number.POSITIVE_INFINITY }, RangeError, /scale/],
    ['a negative epsilon', { epsilon: -1 }, RangeError, /epsilon/],
    ['groups that do not divide', { groups: { count: 3, keep: 1, by: 'max' } }, RangeError, /groups\.count.*8.*3/],
    ['too few kept', { topK: 3, groups: { count: 4, keep: 1, by: 'max' } }, RangeError, /groups\.keep.*3/],
    ['more kept than there are', { groups: { count: 4, keep: 5, by: 'max' } }, RangeError, /groups\.keep/],
    ['an unknown group value', { groups: { count: 4, keep: 2, by: 'sum' } }, RangeError, /groups\.by/],
    ['a bias of another size', { bias: new Float32Array(7) }, RangeError, /bias.*8.*7/],
    ['a selectBias that is no tensor', { selectBias: [0] }, TypeError, /selectBias/],
    ['a scale that is no float32', { scale: 1e39 }, RangeError, /scale/],
    [
      'a selectBias beside sparsemixer',
      { weigh: 'sparsemixer', selectBias: new Float32Array(8) },
      TypeError,
      /selectBias.*sparsemixer/,
    ],
    [
      'groups beside sparsemixer',
      { weigh: 'sparsemixer', groups: { count: 2, keep: 2, by: 'max' } },
      TypeError,
      /groups.*sparsemixer/,
    ],
    ['an unknown device', { device: 'gpu' }, TypeError, /device.*gpu/],
  ])('%s', (_, options, type, message) => {
    expect(make(options)).toThrow(type)
    expect(make(options)).toThrow(message)
  })

  test('options that are left out', () => {
    const [router, experts] = [Router, GroupedExperts] as unknown as (new () => unknown)[]
    if (router === undefined || experts === undefined) throw new Error('no classes')
    expect(() => new router()).toThrow(/Router options.*undefined/)
    expect(() => new experts()).toThrow(/GroupedExperts options.*undefined/)
  })

  test('logits of another shape, dtype; tokens without a weight; use after dispose', () => {
    using router = new Router({ numExperts: 8, topK: 2, device: 'cpu' })
    using wide = Tensor.zeros([3, 9], { device: 'cpu' })
    using narrow = Tensor.zeros([3, 8], { dtype: 'bf16', device: 'cpu' })
    using logits = Tensor.zeros([3, 8], { device: 'cpu' })
    using four = Tensor.zeros([4, 8], { device: 'cpu' })
    expect(() => router.route(null, wide)).toThrow(/logits.*\[tokens, 8\].*\[3, 9\]/)
    expect(() => router.route(null, narrow)).toThrow(/logits.*f32.*bf16/)
    expect(() => router.route(four, logits)).toThrow(/logits.*\[4, 8\].*\[3, 8\]/)
    expect(() => router.route(null)).toThrow(/logits/)
    expect(() => router.route(wide)).toThrow(/weight/)
    router.dispose()
    expect(() => router.route(null, logits)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))
  })
})
