import { expect, test } from 'vitest'
import { type PresetOptions, type RouterRule, routers } from '../src/index.js'

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
