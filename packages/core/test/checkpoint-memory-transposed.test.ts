// The same for a layer whose experts lie transposed in one tensor of a GiB (GPT-OSS's layout and widths).
import { expect, test } from 'vitest'
import { loadMeasured } from './checkpoint/memory.js'

test('at most 64 MiB beyond the weights', { timeout: 120_000 }, async () => {
  const [experts, width] = [22, 2880]
  const block = 'model.layers.0.mlp.'
  const files = [
    {
      [`${block}router.weight`]: [experts, width],
      [`${block}router.bias`]: [experts],
      [`${block}experts.gate_up_proj`]: [experts, width, 2 * width],
      [`${block}experts.gate_up_proj_bias`]: [experts, 2 * width],
      [`${block}experts.down_proj`]: [experts, width, width],
      [`${block}experts.down_proj_bias`]: [experts, width],
    },
  ]
  const config = {
    model_type: 'gpt_oss',
    hidden_size: width,
    intermediate_size: width,
    num_local_experts: experts,
    num_experts_per_tok: 4,
    num_hidden_layers: 1,
  }
  expect(await loadMeasured({ config, files })).toBeLessThan(64)
})
