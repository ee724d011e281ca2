import { Tensor } from '@nexus/native'
import { expect, test } from 'vitest'
import { type PresetOptions, Router, type RouterRule, routers } from '../src/index.js'

test('every preset returns a rule for the counts that it was given, and names an option that it does not know', () => {
  for (const [name, preset] of Object.entries(routers)) {
    const make: (options: PresetOptions) => RouterRule = preset
    expect(make({ numExperts: 16, topK: 2 })).toMatchObject({ numExperts: 16, topK: 2 })
    expect(() => make({ numExperts: 16, topK: 2, ...{ normTopK: true } }), name).toThrow(/normTopK/)
  }
})

test("norm_topk_prob decides where the family's config has it", () => {
  const counts = { numExperts: 16, topK: 2 }
  expect(routers.qwen2Moe(counts).normalize).toBe('none')
  expect(routers.qwen2Moe({ ...counts, normTopkProb: true }).normalize).toBe('sum')
  expect(routers.qwen3Moe(counts).normalize).toBe('sum')
  expect(routers.olmoe(counts).normalize).toBe('none')
  expect(routers.deepseekV3(counts)).toMatchObject({ normalize: 'sum', epsilon: 1e-20, scale: 2.5 })
})

// By hand, from the families' formulas: p = softmax of the logits is 0.4, 0.3, 0.2, 0.1, their sigmoids are 0.8, 0.75, 2/3, 0.5.
test.each([
  ['mixtral', 4 / 7, 3 / 7],
  ['minimax', 4 / 7, 3 / 7],
  ['qwen3Moe', 4 / 7, 3 / 7],
  ['qwen3Next', 4 / 7, 3 / 7],
  ['ernie45', 4 / 7, 3 / 7],
  ['qwen2Moe', 0.4, 0.3],
  ['olmoe', 0.4, 0.3],
  ['jamba', 0.4, 0.3],
  ['deepseekV2', 0.4, 0.3],
  ['deepseekV3', (2.5 * 0.8) / 1.55, (2.5 * 0.75) / 1.55],
  ['kimi', (2.827 * 0.8) / 1.55, (2.827 * 0.75) / 1.55],
  ['glm4Moe', 0.8 / 1.55, 0.75 / 1.55],
  ['dots1', 0.8 / 1.55, 0.75 / 1.55],
  ['gptOss', 4 / 7, 3 / 7],
  ['granite', 4 / 7, 3 / 7],
  ['llama4', 0.8, 0.75],
  // Each round's runner-up is further than 2·0.01 of the logit away, and masked.
  ['phiMoe', 1, 1],
] as const)('%s weighs the best two of four as its family does', async (name, first, second) => {
  using router = new Router({ ...routers[name]({ numExperts: 4, topK: 2 }), device: 'cpu' })
  using logits = Tensor.from([1, 3, 2, 4].map(Math.log), [1, 4], { device: 'cpu' })
  using routed = router.route(null, logits)
  expect([...(await routed.expertIds.toArray())]).toEqual([3, 1])
  const weights = await routed.weights.toFloat32Array()
  expect(weights[0]).toBeCloseTo(first, 6)
  expect(weights[1]).toBeCloseTo(second, 6)
})

test('groups are judged by their maximum in DeepSeek-V2, by their best two in DeepSeek-V3', async () => {
  // Groups {0, 1} and {2, 3}: the first has the best expert, the second the better pair.
  using logits = Tensor.from([2, -2, 1, 1], [1, 4], { device: 'cpu' })
  const groups = { count: 2, keep: 1 }
  for (const [name, ids] of [
    ['deepseekV2', [0, 1]],
    ['deepseekV3', [2, 3]],
  ] as const) {
    using router = new Router({ ...routers[name]({ numExperts: 4, topK: 2, groups }), device: 'cpu' })
    using routed = router.route(null, logits)
    expect([...(await routed.expertIds.toArray())], name).toEqual(ids)
  }
})
