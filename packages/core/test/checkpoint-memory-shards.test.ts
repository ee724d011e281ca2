// Loading a 1 GiB layer that lies in several files, a tensor for each matrix of each expert, takes a bounded amount of host memory.
import { expect, test } from 'vitest'
import { type BigCheckpoint, loadMeasured } from './checkpoint/memory.js'

test('at most 64 MiB beyond the weights', { timeout: 120_000 }, async () => {
  const [experts, width, inner, shards] = [32, 2048, 2731, 4]
  const block = 'model.layers.0.mlp.'
  const files = Array.from({ length: shards }, (_, shard): BigCheckpoint['files'][number] => {
    const mine = Array.from({ length: experts / shards }, (_, i) => shard * (experts / shards) + i)
    return {
      ...(shard === 0 ? { [`${block}gate.weight`]: [experts, width] } : {}),
      ...Object.fromEntries(
        mine.flatMap((e) => [
          [`${block}experts.${e}.gate_proj.weight`, [inner, width]],
          [`${block}experts.${e}.up_proj.weight`, [inner, width]],
          [`${block}experts.${e}.down_proj.weight`, [width, inner]],
        ]),
      ),
    }
  })
  const config = {
    model_type: 'qwen3_moe',
    hidden_size: width,
    moe_intermediate_size: inner,
    num_experts: experts,
    num_experts_per_tok: 8,
    num_hidden_layers: 1,
  }
  expect(await loadMeasured({ config, files })).toBeLessThan(64)
})
