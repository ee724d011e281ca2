// A folder as a whole: index and shards, config.json in all its spellings, what is refused and how, progress and abort.
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CheckpointError, memoryStats, Tensor, UnsupportedError } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  type FromCheckpointOptions,
  fromCheckpoint,
  inspectCheckpoint,
  type LoadProgress,
} from '../src/checkpoint/from-checkpoint.js'
import {
  checkpoint,
  fixtures,
  folder,
  folderOf,
  safetensors,
  tensor,
  type WrittenTensor,
} from './checkpoint/folders.js'

const [E, H, I] = [2, 4, 3]
const config = {
  model_type: 'mixtral',
  hidden_size: H,
  intermediate_size: I,
  num_local_experts: E,
  num_experts_per_tok: 1,
  num_hidden_layers: 1,
}
const block = 'model.layers.0.block_sparse_moe.'

function weights(change: Record<string, WrittenTensor | null> = {}): Record<string, WrittenTensor> {
  const all: Record<string, WrittenTensor | null> = { [`${block}gate.weight`]: tensor([E, H]) }
  for (let e = 0; e < E; e++) {
    all[`${block}experts.${e}.w1.weight`] = tensor([I, H])
    all[`${block}experts.${e}.w3.weight`] = tensor([I, H])
    all[`${block}experts.${e}.w2.weight`] = tensor([H, I])
  }
  Object.assign(all, change)
  return Object.fromEntries(Object.entries(all).filter((pair): pair is [string, WrittenTensor] => pair[1] !== null))
}

/** Loads on the CPU and disposes; for what should fail, and what should not. */
async function load(path: string, options: FromCheckpointOptions = {}) {
  const layer = await fromCheckpoint(path, { device: 'cpu', ...options })
  layer.dispose()
  return layer
}
const failing = async (path: string, options?: FromCheckpointOptions): Promise<CheckpointError> => {
  const error: unknown = await load(path, options).then(
    () => new Error('it was accepted'),
    (e: unknown) => e,
  )
  expect(error).toBeInstanceOf(CheckpointError)
  return error as CheckpointError
}

describe('index and shards', () => {
  const [first, second] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
  const all = Object.entries(weights())
  const parts = [all.slice(0, 3), all.slice(3)]
  const map = Object.fromEntries(parts.flatMap((part, i) => part.map(([name]) => [name, i === 0 ? first : second])))
  const shards = (index: object, files: number[] = [0, 1]) =>
    folderOf({
      'config.json': config,
      'model.safetensors.index.json': index,
      ...Object.fromEntries(
        files.map((i) => [i === 0 ? first : second, safetensors(Object.fromEntries(parts[i] ?? []))]),
      ),
    })

  test('a layer may lie in several files', async () => {
    await load(shards({ metadata: { total_size: 1 }, weight_map: map }))
  })
  test('files that hold nothing of the layer are not opened', async () => {
    await load(shards({ weight_map: { ...map, 'lm_head.weight': 'model-00003-of-00003.safetensors' } }))
  })
  test('the single file wins, as in transformers', async () => {
    const path = checkpoint(config, weights())
    writeFileSync(join(path, 'model.safetensors.index.json'), 'not JSON')
    await load(path)
  })
  test('a missing shard', async () => {
    const error = await failing(shards({ weight_map: map }, [0]))
    expect(error.file).toMatch(new RegExp(`${second}$`))
    expect(error.message).toMatch(/cannot be opened/)
  })
  test('a tensor that is not in its shard', async () => {
    const name = `${block}experts.1.w2.weight`
    const error = await failing(shards({ weight_map: { ...map, [name]: first } }))
    expect(error).toMatchObject({ tensor: name })
    expect(error.message).toMatch(/is not in the file/)
  })
  test('a shard that is cut', async () => {
    const path = shards({ weight_map: map }, [0])
    writeFileSync(join(path, second), safetensors(Object.fromEntries(parts[1] ?? [])).subarray(0, -3))
    expect((await failing(path)).message).toMatch(/truncated/)
  })
  test.each([
    '../model.safetensors',
    '/etc/passwd',
    'a/b.safetensors',
    '..\\m.safetensors',
    'C:m.safetensors',
    '..',
    '',
    'm.bin',
    'm\0.safetensors',
  ])('an entry that names %j', async (name) => {
    const tensorName = `${block}gate.weight`
    const error = await failing(shards({ weight_map: { ...map, [tensorName]: name } }))
    expect(error).toMatchObject({ tensor: tensorName })
    expect(error.message).toMatch(/plain name/)
  })
  test.each([
    ['no weight_map', {}],
    ['a list', { weight_map: [] }],
    ['a number as file', { weight_map: { a: 1 } }],
  ])('an index with %s', async (_, index) => {
    expect((await failing(shards(index))).file).toMatch(/index\.json$/)
  })
  test('a name twice in the index', async () => {
    const path = folderOf({ 'config.json': config, 'model.safetensors.index.json': '{"weight_map":{"a":"x","a":"y"}}' })
    expect((await failing(path)).message).toMatch(/twice/)
  })
  test('no folder, no config, no weights', async () => {
    expect((await failing(join(folder(), 'nothing'))).file).toMatch(/config\.json$/)
    expect((await failing(folder())).file).toMatch(/config\.json$/)
    expect((await failing(folderOf({ 'config.json': config }))).message).toMatch(/neither model.safetensors nor/)
    const path = folderOf({ 'model.safetensors': safetensors(weights()) })
    mkdirSync(join(path, 'config.json'))
    expect((await failing(path)).message).toMatch(/not a regular file/)
  })
})

describe('tensors', () => {
  test.each(Object.keys(weights()))('%s missing', async (name) => {
    const error = await failing(checkpoint(config, weights({ [name]: null })))
    expect(error).toMatchObject({ tensor: name })
    expect(error.file).toMatch(/model\.safetensors$/)
  })
  test.each([
    ['gate.weight', [H, E]],
    ['gate.weight', [E * H]],
    ['experts.0.w1.weight', [H, I]],
    ['experts.1.w3.weight', [I + 1, H]],
    ['experts.1.w2.weight', [H, I, 1]],
  ])('%s of shape %j', async (name, shape) => {
    const error = await failing(checkpoint(config, weights({ [block + name]: tensor(shape) })))
    expect(error).toMatchObject({ tensor: block + name })
    expect(error.message).toContain(`has shape ${JSON.stringify(shape)}`)
  })
  test('a surplus one: fewer experts configured than stored, or a bias that would be ignored', async () => {
    const fewer = { ...config, num_local_experts: 1 }
    const one = weights({ [`${block}gate.weight`]: tensor([1, H]) })
    expect((await failing(checkpoint(fewer, one))).tensor).toBe(`${block}experts.1.w1.weight`)
    const bias = weights({ [`${block}experts.0.w1.bias`]: tensor([I]) })
    expect((await failing(checkpoint(config, bias))).message).toMatch(/not part of a Mixtral block/)
  })
  test('gate and up of different dtypes', async () => {
    const mixed = weights({ [`${block}experts.1.w3.weight`]: tensor([I, H], undefined, 'F32') })
    expect((await failing(checkpoint(config, mixed))).message).toMatch(/is f32, but .* is bf16/)
  })
  test('dtypes that are no weights', async () => {
    const stored = (dtype: string, bytes: number) =>
      weights({ [`${block}experts.0.w2.weight`]: { dtype, shape: [H, I], data: new Uint8Array(bytes * H * I) } })
    for (const [dtype, bytes] of [
      ['F64', 8],
      ['I64', 8],
      ['BOOL', 1],
      ['X1', 3],
    ] as const) {
      expect((await failing(checkpoint(config, stored(dtype, bytes)))).message).toContain(dtype)
    }
    await expect(load(checkpoint(config, stored('F8_E4M3', 1)))).rejects.toThrow(UnsupportedError)
  })
  test.each([
    'experts.0.w1.weight_scale_inv',
    'experts.0.w1.qweight',
    'experts.gate_up_proj_blocks',
    'experts.down_proj_scales',
  ])('quantised: %s', async (name) => {
    const quantised = checkpoint(config, weights({ [block + name]: tensor([1]) }))
    await expect(load(quantised)).rejects.toThrow(UnsupportedError)
    await expect(load(quantised)).rejects.toThrow(/quantised/)
  })
})

describe('dtypes', () => {
  const router = async (stored: 'BF16' | 'F32', dtype: 'f32' | 'bf16' | 'f16') => {
    const layer = await load(
      checkpoint(config, weights({ [`${block}gate.weight`]: tensor([E, H], undefined, stored) })),
      { dtype },
    )
    return layer.weights.router?.dtype
  }
  test('a router is never rounded', async () => {
    expect(await router('BF16', 'bf16')).toBe('bf16')
    expect(await router('BF16', 'f16')).toBe('f32')
    expect(await router('BF16', 'f32')).toBe('f32')
    expect(await router('F32', 'bf16')).toBe('f32')
    expect(await router('F32', 'f32')).toBe('f32')
  })

  onEachDevice('stored in f16, bf16 and f32, wanted in each', (device) => {
    const values = [1, -2.5, 0.09375, 65504, 6.103515625e-5, 0, -0, 448, 3, 5, 7, 11]
    // 65504 and the rest are exact in f16; 65504 is not in bf16, so it is left out where bf16 is involved.
    const half = Uint16Array.from([
      0x3c00, 0xc100, 0x2e00, 0x7bff, 0x0400, 0, 0x8000, 0x5f00, 0x4200, 0x4500, 0x4700, 0x4980,
    ])
    test.each([
      ['F16', 'f32', values],
      ['F16', 'f16', values],
      ['F16', 'bf16', values.map((v) => (v === 65504 ? 65536 : v))],
    ] as const)('%s to %s', async (stored, dtype, expected) => {
      const down = { dtype: stored, shape: [H, I], data: new Uint8Array(half.buffer) }
      const layer = await fromCheckpoint(checkpoint(config, weights({ [`${block}experts.0.w2.weight`]: down })), {
        device,
        dtype,
      })
      const experts = layer.weights.experts[1]
      if (!(experts instanceof Tensor)) throw new Error('no experts')
      expect([...(await experts.toFloat32Array())].slice(0, H * I)).toEqual(expected)
      layer.dispose()
    })
  })
})

describe('config.json', () => {
  const specOf = async (change: Record<string, unknown>) => {
    const path = folderOf({ 'config.json': { ...config, ...change }, 'model.safetensors': safetensors(weights()) })
    return inspectCheckpoint(path)
  }
  const refused = async (change: Record<string, unknown>) => {
    const error: unknown = await specOf(change).catch((e: unknown) => e)
    expect(error).toBeInstanceOf(CheckpointError)
    expect((error as CheckpointError).file).toMatch(/config\.json$/)
    return (error as CheckpointError).message
  }

  test.each(['num_experts', 'num_local_experts', 'n_routed_experts'])('%s', async (key) => {
    const { spec } = await specOf({ num_local_experts: undefined, [key]: 5 })
    expect(spec.router.numExperts).toBe(5)
  })
  test('spellings may repeat each other, not contradict', async () => {
    expect((await specOf({ num_experts: E })).spec.router.numExperts).toBe(E)
    expect(await refused({ num_experts: E + 1 })).toMatch(/num_experts is 3 but num_local_experts is 2/)
  })
  test('experts_per_token, as GPT-OSS has it', async () => {
    expect((await specOf({ num_experts_per_tok: undefined, experts_per_token: 2 })).spec.router.topK).toBe(2)
  })
  test('what is missing or null has the default of transformers', async () => {
    const { spec, moeLayers } = await specOf({
      hidden_size: undefined,
      intermediate_size: null,
      num_local_experts: undefined,
      num_experts_per_tok: undefined,
      num_hidden_layers: undefined,
    })
    expect(spec).toMatchObject({
      inputDim: 4096,
      hiddenDim: 14336,
      activation: 'swiglu',
      router: { numExperts: 8, topK: 2 },
    })
    expect(moeLayers).toHaveLength(32)
  })
  test('a language model inside another configuration', async () => {
    const { modelType, spec } = await specOf({ model_type: 'some_vlm', text_config: { ...config, hidden_size: 12 } })
    expect(modelType).toBe('mixtral')
    expect(spec.inputDim).toBe(12)
  })
  test.each([
    ['swish', 'swiglu'],
    ['gelu', 'geglu'],
    ['gelu_new', 'geglu-tanh'],
    ['relu', 'reglu'],
  ])('%s is %s', async (act, activation) => {
    expect((await specOf({ hidden_act: act })).spec.activation).toBe(activation)
  })
  test.each([
    [{ hidden_size: 0 }],
    [{ hidden_size: -1 }],
    [{ hidden_size: 1.5 }],
    [{ hidden_size: '4' }],
    [{ hidden_size: 2 ** 53 }],
    [{ num_local_experts: 2000 }],
    [{ num_experts_per_tok: 3 }],
    [{ num_hidden_layers: 1e9 }],
    [{ hidden_act: 7 }],
    [{ model_type: 7 }],
    [{ model_type: 'qwen3_moe', norm_topk_prob: 'yes' }],
    [{ model_type: 'qwen3_moe', mlp_only_layers: 'none' }],
    [{ model_type: 'deepseek_v3', n_group: 3, topk_group: 1, num_local_experts: 16 }],
    [{ model_type: 'deepseek_v3', n_group: 8, topk_group: 1, num_local_experts: 16, num_experts_per_tok: 4 }],
  ])('%j is refused', async (change) => {
    await refused(change)
  })
  test('an unknown activation, method or family is named, with what is known', async () => {
    await expect(specOf({ hidden_act: 'quick_gelu' })).rejects.toThrow(/'quick_gelu' is none of silu/)
    await expect(specOf({ model_type: 'deepseek_v2', topk_method: 'noaux_tc' })).rejects.toThrow(UnsupportedError)
    await expect(specOf({ model_type: 'bert' })).rejects.toThrow(/'bert' is not known; known are .*mixtral.*qwen3_moe/)
    await expect(specOf({ model_type: 'bert' })).rejects.toThrow(UnsupportedError)
  })
  test('text that is no JSON object', async () => {
    for (const text of ['', '[]', '{', '{"a":1,"a":2}']) {
      const path = folderOf({ 'config.json': text, 'model.safetensors': safetensors(weights()) })
      await expect(inspectCheckpoint(path)).rejects.toThrow(CheckpointError)
    }
  })
  test('a layer without experts is refused with a list of those that have some', async () => {
    const path = checkpoint(
      { ...config, model_type: 'deepseek_v3', num_hidden_layers: 61, n_group: 1, topk_group: 1 },
      weights(),
    )
    await expect(load(path, { layer: 1 })).rejects.toThrow(/layer must be one of the MoE layers 3-60 .*got 1/)
    await expect(load(path, { layer: 61 })).rejects.toThrow(RangeError)
    const sparse = checkpoint(
      { ...config, model_type: 'qwen3_moe', num_hidden_layers: 6, mlp_only_layers: [2] },
      weights(),
    )
    await expect(load(sparse, { layer: 2 })).rejects.toThrow(/0-1, 3-5/)
    const none = checkpoint(
      { ...config, model_type: 'deepseek_v3', num_hidden_layers: 2, n_group: 1, topk_group: 1 },
      weights(),
    )
    expect((await failing(none)).message).toMatch(/without an MoE layer/)
  })
})

describe('options', () => {
  const path = join(fixtures, 'mixtral')
  test.each([
    [{ layers: 1 }, /layer/],
    [{ layer: '1' }, /layer/],
    [{ layer: -1 }, /layer/],
    [{ dtype: 'fp8' }, /dtype/],
    [{ onProgress: 1 }, /onProgress/],
    [{ signal: {} }, /signal/],
  ])('%j is refused by name', async (options, message) => {
    const error: unknown = await fromCheckpoint(path, options as FromCheckpointOptions).catch((e: unknown) => e)
    expect(error instanceof TypeError || error instanceof RangeError).toBe(true)
    expect((error as Error).message).toMatch(message)
  })
  test('the folder must be a path', async () => {
    await expect(fromCheckpoint('')).rejects.toThrow(/directory/)
    await expect(fromCheckpoint(7 as unknown as string)).rejects.toThrow(TypeError)
  })
})

onEachDevice('loading', (device) => {
  /**
   * Nothing is live. The thread that finished the last write may hold its buffer for a moment longer than the promise: so no test begins with what
   * it sees live then, and this one waits.
   */
  const allFreed = async () => {
    const live = () => {
      const { liveBytes, liveBuffers } = memoryStats(device)
      return { liveBytes, liveBuffers }
    }
    await expect.poll(live, { timeout: 4_000 }).toEqual({ liveBytes: 0, liveBuffers: 0 })
  }
  const path = join(fixtures, 'gpt_oss')

  test('reports progress that never falls and ends at the total', async () => {
    const steps: LoadProgress[] = []
    const layer = await fromCheckpoint(path, { device, onProgress: (step) => steps.push(step) })
    layer.dispose()
    // Router 8×64 + 8, experts 8 × (128×64 + 64×64 + 128 + 64), in bf16.
    const total = 2 * (8 * 64 + 8 + 8 * (128 * 64 + 64 * 64 + 128 + 64))
    expect(steps.at(-1)).toEqual({
      tensor: 'model.layers.0.mlp.experts.down_proj_bias',
      bytesDone: total,
      bytesTotal: total,
    })
    for (const [i, step] of steps.entries()) {
      expect(step.bytesTotal).toBe(total)
      expect(step.bytesDone).toBeGreaterThan(steps[i - 1]?.bytesDone ?? 0)
    }
  })

  test.each([0, 1, 5])('aborted after %i steps: rejects with the reason and frees everything', async (after) => {
    const controller = new AbortController()
    const reason = new Error('enough')
    let steps = 0
    if (after === 0) controller.abort(reason)
    const loading = fromCheckpoint(path, {
      device,
      signal: controller.signal,
      onProgress: () => {
        steps++
        if (steps === after) controller.abort(reason)
      },
    })
    await expect(loading).rejects.toBe(reason)
    // One more chunk may have been on its way.
    expect(steps).toBeLessThanOrEqual(after + 1)
    await allFreed()
  })

  test('a callback that throws, and a file that breaks off, free everything too', async () => {
    const reason = new Error('from the callback')
    const throwing = fromCheckpoint(path, {
      device,
      onProgress: () => {
        throw reason
      },
    })
    await expect(throwing).rejects.toBe(reason)
    await expect(
      fromCheckpoint(checkpoint(config, weights({ [`${block}experts.1.w2.weight`]: null })), { device }),
    ).rejects.toThrow(CheckpointError)
    await allFreed()
  })

  test('disposing of the layer gives its weights back', async () => {
    for (let i = 0; i < 3; i++) (await fromCheckpoint(path, { device })).dispose()
    await allFreed()
  })
})
