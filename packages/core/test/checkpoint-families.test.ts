// Each family's names, shapes and layouts: a checkpoint in which every element says where it came from is loaded, and every
// element must be where the layer wants it. The values are small integers, which bf16 holds exactly.
import { Tensor } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { families } from '../src/checkpoint/families.js'
import { inspectCheckpoint, readLayer } from '../src/checkpoint/read-layer.js'
import { checkpoint, tensor, type WrittenTensor } from './checkpoint/folders.js'

// Odd sizes that differ from each other, so that no swap of dimensions goes unseen.
const [E, H, I, S] = [3, 7, 5, 4]

type Written = Record<string, WrittenTensor>
type Matrix = (row: number, column: number) => number

/** Different for every role, expert, row and column, and exact in bf16: seven bits, and the column in the exponent. */
const roles = { gate: 0, up: 1, down: 2 } as const
const value = (role: keyof typeof roles, e: number) => (row: number, column: number) =>
  (64 + roles[role] + 3 * e + 9 * row) * 2 ** column

const rows = (n: number, columns: number, f: Matrix): number[] =>
  Array.from({ length: n * columns }, (_, i) => f(Math.floor(i / columns), i % columns))
const experts = (f: (e: number) => number[]): number[] => Array.from({ length: E }, (_, e) => f(e)).flat()

/** What the layer must hold: [E, 2I, H] with gates and ups alternating, and [E, H, I]. */
const wantedUp = experts((e) => rows(2 * I, H, (r, c) => value(r % 2 === 0 ? 'gate' : 'up', e)(r >> 1, c)))
const wantedDown = experts((e) => rows(H, I, value('down', e)))

const layouts = {
  perExpert(base: string, [gate, up, down]: readonly [string, string, string]): Written {
    const out: Written = {}
    for (let e = 0; e < E; e++) {
      out[`${base}experts.${e}.${gate}.weight`] = tensor([I, H], rows(I, H, value('gate', e)))
      out[`${base}experts.${e}.${up}.weight`] = tensor([I, H], rows(I, H, value('up', e)))
      out[`${base}experts.${e}.${down}.weight`] = tensor([H, I], rows(H, I, value('down', e)))
    }
    return out
  },
  fused: (up: string, down: string): Written => ({
    [up]: tensor(
      [E, 2 * I, H],
      experts((e) => [...rows(I, H, value('gate', e)), ...rows(I, H, value('up', e))]),
    ),
    [down]: tensor([E, H, I], wantedDown),
  }),
  transposed: (base: string, blocks: boolean): Written => ({
    [`${base}experts.gate_up_proj`]: tensor(
      [E, H, 2 * I],
      experts((e) =>
        rows(H, 2 * I, (r, c) => {
          if (blocks) return c < I ? value('gate', e)(c, r) : value('up', e)(c - I, r)
          return value(c % 2 === 0 ? 'gate' : 'up', e)(c >> 1, r)
        }),
      ),
    ),
    [`${base}experts.down_proj`]: tensor(
      [E, I, H],
      experts((e) => rows(I, H, (r, c) => value('down', e)(c, r))),
    ),
  }),
}
const projections = ['gate_proj', 'up_proj', 'down_proj'] as const
const numbered = ['w1', 'w3', 'w2'] as const
const shared = (base: string, width: number): Written => ({
  [`${base}.gate_proj.weight`]: tensor([width, H], rows(width, H, value('gate', 0))),
  [`${base}.up_proj.weight`]: tensor([width, H], rows(width, H, value('up', 0))),
  [`${base}.down_proj.weight`]: tensor([H, width], rows(H, width, value('down', 0))),
})

const common = { hidden_size: H, num_hidden_layers: 4, num_experts_per_tok: 2, hidden_act: 'silu' }
const qwen = { ...common, num_experts: E, moe_intermediate_size: I }
const deepseek = {
  ...common,
  n_routed_experts: E,
  moe_intermediate_size: I,
  n_shared_experts: 2,
  n_group: 1,
  topk_group: 1,
}
const plain = { ...common, num_local_experts: E, intermediate_size: I }

interface Case {
  readonly config: Record<string, unknown>
  /** The first layer with experts, and all of them. */
  readonly moeLayers: readonly number[]
  readonly router: string
  readonly tensors: (base: string) => Written
  readonly sharedWidth?: number
  readonly base: (layer: number) => string
  readonly spec: object
}
const mlp = (layer: number) => `model.layers.${layer}.mlp.`
const sparse = (layer: number) => `model.layers.${layer}.block_sparse_moe.`
const feed = (layer: number) => `model.layers.${layer}.feed_forward.`
const bias = tensor([E], [1, 2, 3], 'F32')

const softmax = { score: 'softmax', normalize: 'sum' }
const raw = { score: 'softmax', normalize: 'none' }
const cases: Record<string, Case> = {
  mixtral: {
    config: plain,
    moeLayers: [0, 1, 2, 3],
    router: 'gate.weight',
    base: sparse,
    tensors: (b) => layouts.perExpert(b, numbered),
    spec: { router: softmax },
  },
  minimax: {
    config: plain,
    moeLayers: [0, 1, 2, 3],
    router: 'gate.weight',
    base: sparse,
    tensors: (b) => layouts.perExpert(b, numbered),
    spec: { router: softmax },
  },
  phimoe: {
    config: { ...plain, router_jitter_noise: 0.02 },
    moeLayers: [0, 1, 2, 3],
    router: 'gate.weight',
    base: sparse,
    tensors: (b) => layouts.perExpert(b, numbered),
    spec: { router: { weigh: 'sparsemixer', jitter: 0.02 } },
  },
  granitemoe: {
    config: plain,
    moeLayers: [0, 1, 2, 3],
    router: 'router.layer.weight',
    base: sparse,
    tensors: (b) => layouts.fused(`${b}input_linear.weight`, `${b}output_linear.weight`),
    spec: { router: { score: 'identity', weigh: 'softmax-chosen', normalize: 'none' } },
  },
  qwen2_moe: {
    config: { ...qwen, shared_expert_intermediate_size: S, decoder_sparse_step: 2 },
    moeLayers: [1, 3],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: S,
    tensors: (b) => ({
      ...layouts.perExpert(b, projections),
      ...shared(`${b}shared_expert`, S),
      [`${b}shared_expert_gate.weight`]: tensor([1, H]),
    }),
    spec: { router: raw },
  },
  qwen3_next: {
    config: { ...qwen, shared_expert_intermediate_size: S, mlp_only_layers: [0, 2] },
    moeLayers: [1, 3],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: S,
    tensors: (b) => ({
      ...layouts.perExpert(b, projections),
      ...shared(`${b}shared_expert`, S),
      [`${b}shared_expert_gate.weight`]: tensor([1, H]),
    }),
    spec: { router: softmax },
  },
  qwen3_moe: {
    config: { ...qwen, norm_topk_prob: true, hidden_act: 'gelu' },
    moeLayers: [0, 1, 2, 3],
    router: 'gate.weight',
    base: mlp,
    tensors: (b) => layouts.perExpert(b, projections),
    spec: { router: softmax, activation: 'geglu' },
  },
  olmoe: {
    config: { ...plain, hidden_act: 'gelu_pytorch_tanh' },
    moeLayers: [0, 1, 2, 3],
    router: 'gate.weight',
    base: mlp,
    tensors: (b) => layouts.perExpert(b, projections),
    spec: { router: raw, activation: 'geglu-tanh' },
  },
  jamba: {
    config: plain,
    moeLayers: [1, 3],
    router: 'router.weight',
    base: feed,
    tensors: (b) => layouts.perExpert(b, projections),
    spec: { router: raw },
  },
  deepseek_v2: {
    config: { ...deepseek, first_k_dense_replace: 1, routed_scaling_factor: 16 },
    moeLayers: [1, 2, 3],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: 2 * I,
    tensors: (b) => ({ ...layouts.perExpert(b, projections), ...shared(`${b}shared_experts`, 2 * I) }),
    spec: { router: { ...raw, scale: 16, groups: null } },
  },
  deepseek_v3: {
    config: { ...deepseek, n_group: 3, topk_group: 2 },
    moeLayers: [3],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: 2 * I,
    tensors: (b) => ({
      ...layouts.perExpert(b, projections),
      ...shared(`${b}shared_experts`, 2 * I),
      [`${b}gate.e_score_correction_bias`]: bias,
    }),
    spec: { router: { score: 'sigmoid', scale: 2.5, groups: { count: 3, keep: 2, by: 'top2-sum' }, normalize: 'sum' } },
  },
  kimi_k2: {
    config: { ...deepseek, routed_scaling_factor: 2.827 },
    moeLayers: [3],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: 2 * I,
    tensors: (b) => ({
      ...layouts.perExpert(b, projections),
      ...shared(`${b}shared_experts`, 2 * I),
      [`${b}gate.e_score_correction_bias`]: bias,
    }),
    spec: { router: { score: 'sigmoid', scale: 2.827, groups: null } },
  },
  glm4_moe: {
    config: deepseek,
    moeLayers: [1, 2, 3],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: 2 * I,
    tensors: (b) => ({
      ...layouts.perExpert(b, projections),
      ...shared(`${b}shared_experts`, 2 * I),
      [`${b}gate.e_score_correction_bias`]: bias,
    }),
    spec: { router: { score: 'sigmoid', scale: 1, groups: null, normalize: 'sum' } },
  },
  dots1: {
    config: { ...deepseek, n_shared_experts: null },
    moeLayers: [0, 1, 2, 3],
    router: 'gate.weight',
    base: mlp,
    tensors: (b) => ({ ...layouts.perExpert(b, projections), [`${b}gate.e_score_correction_bias`]: bias }),
    spec: { router: { score: 'sigmoid', scale: 1, normalize: 'none' }, shared: null },
  },
  ernie4_5_moe: {
    config: {
      ...common,
      num_experts_per_tok: undefined,
      moe_k: 2,
      moe_num_experts: E,
      moe_intermediate_size: I,
      moe_num_shared_experts: 2,
      moe_layer_end_index: 2,
    },
    moeLayers: [1, 2],
    router: 'gate.weight',
    base: mlp,
    sharedWidth: 2 * I,
    tensors: (b) => ({
      ...layouts.perExpert(b, projections),
      ...shared(`${b}shared_experts`, 2 * I),
      [`${b}moe_statics.e_score_correction_bias`]: tensor([1, E], [1, 2, 3], 'F32'),
    }),
    spec: { router: { score: 'softmax', normalize: 'clamped-sum', epsilon: 1e-12 } },
  },
  gpt_oss: {
    config: plain,
    moeLayers: [0, 1, 2, 3],
    router: 'router.weight',
    base: mlp,
    tensors: (b) => ({
      ...layouts.transposed(b, false),
      [`${b}router.bias`]: tensor([E]),
      [`${b}experts.gate_up_proj_bias`]: tensor([E, 2 * I]),
      [`${b}experts.down_proj_bias`]: tensor([E, H]),
    }),
    spec: {
      router: { score: 'identity', weigh: 'softmax-chosen' },
      activation: 'clamped-swiglu',
      limit: 7,
      alpha: 1.702,
    },
  },
  llama4: {
    config: { text_config: { ...plain, model_type: 'llama4_text', interleave_moe_layer_step: 2 } },
    moeLayers: [1, 3],
    router: 'router.weight',
    base: (layer) => `language_model.model.layers.${layer}.feed_forward.`,
    sharedWidth: I,
    tensors: (b) => ({ ...layouts.transposed(b, true), ...shared(`${b}shared_expert`, I) }),
    spec: { router: { score: 'identity', weigh: 'sigmoid-chosen', normalize: 'none' }, scaleInput: true },
  },
}
/** The same block as transformers 5 holds it in memory. */
for (const name of ['mixtral', 'qwen3_moe', 'jamba'] as const) {
  const perExpert = cases[name]
  if (!perExpert) throw new Error(name)
  cases[`${name}, fused`] = {
    ...perExpert,
    tensors: (b) => layouts.fused(`${b}experts.gate_up_proj`, `${b}experts.down_proj`),
  }
}

function written(name: string, { config, base, router, tensors, moeLayers }: Case): string {
  const at = base(moeLayers[0] ?? 0)
  const routerWeight = tensor(
    [E, H],
    rows(E, H, (e, c) => 10 * e + c),
  )
  return checkpoint(
    { model_type: name.split(',')[0], ...config },
    { [at + router]: routerWeight, ...tensors(at), 'model.norm.weight': tensor([H]) },
  )
}

test('every family of the table has a case here', () => {
  const types = families.flatMap((family) => family.modelTypes)
  expect(types.filter((type) => type !== 'llama4_text' && !(type in cases))).toEqual([])
})

describe.each(Object.entries(cases))('%s', (name, c) => {
  test('configuration', async () => {
    const info = await inspectCheckpoint(written(name, c))
    expect(info.moeLayers).toEqual(c.moeLayers)
    expect(info.spec).toMatchObject({ inputDim: H, hiddenDim: I, ...c.spec })
    expect(info.spec.router).toMatchObject({ numExperts: E, topK: 2 })
  })

  onEachDevice('every element arrives at its place', (device) => {
    test.each([
      ['at once', 1 << 20, 1 << 20],
      ['in chunks of two rows', 4 * H, 6 * H],
      ['in chunks shorter than a row, bands of a row', 6, 2],
      ['in tiles narrower than a band', 6, 1 << 20],
    ])('%s', async (_, chunkBytes, bandBytes) => {
      const { weights } = await readLayer(written(name, c), { device, dtype: 'f32' }, { chunkBytes, bandBytes })
      const read = async (given: unknown) => [...(await (given as Tensor).toFloat32Array())]
      if (!weights) throw new Error('no weights')
      const made = Object.values(weights)
        .flat()
        .filter((w): w is Tensor => w instanceof Tensor)
      try {
        expect(await read(weights.router)).toEqual(rows(E, H, (e, col) => 10 * e + col))
        expect(await read(weights.experts[0])).toEqual(wantedUp)
        expect(await read(weights.experts[1])).toEqual(wantedDown)
        const { sharedWidth = null } = c
        if (sharedWidth === null) expect(weights.shared).toBeUndefined()
        else {
          expect(await read(weights.shared?.[0])).toEqual(
            rows(2 * sharedWidth, H, (r, col) => value(r % 2 === 0 ? 'gate' : 'up', 0)(r >> 1, col)),
          )
          expect(await read(weights.shared?.[1])).toEqual(rows(H, sharedWidth, value('down', 0)))
        }
        const count = (n: number) => Array.from({ length: n }, (_, i) => i)
        if (weights.selectBias) expect(await read(weights.selectBias)).toEqual([1, 2, 3])
        if (weights.routerBias) expect(await read(weights.routerBias)).toEqual(count(E))
        if (weights.sharedGate) expect(await read(weights.sharedGate)).toEqual(count(H))
        if (weights.expertBiases) {
          expect(await read(weights.expertBiases[0])).toEqual(count(2 * I * E))
          expect(await read(weights.expertBiases[1])).toEqual(count(H * E))
        }
      } finally {
        for (const w of made) w.dispose()
      }
    })
  })
})
