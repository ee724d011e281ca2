/**
 * The table of model families: to read a new one, add a row (docs/checkpoint-families.md walks through it). Every row was
 * checked against the model's own code in transformers 5.17 (`configuration_*.py` for keys and defaults, `modeling_*.py` for the
 * router and the experts, `conversion_mapping.py` for the names on disk).
 */
import { UnsupportedError } from '@nexus/native'
import { routers } from '@nexus/router-kernels'
import type { ModelConfig } from './config.js'
import type { ExpertTensors, Family } from './family.js'
import {
  afterDense,
  counts,
  deepseekRouter,
  everyLayer,
  expertKeys,
  expertShape,
  groupsOf,
  layersWhere,
  normTopkProb,
  sharedExperts,
  sparseStep,
} from './family-config.js'

// ---- names on disk ---------------------------------------------------------------------------------------------------
const projections: ExpertTensors = {
  layout: 'per-expert',
  gate: 'experts.{e}.gate_proj.weight',
  up: 'experts.{e}.up_proj.weight',
  down: 'experts.{e}.down_proj.weight',
}
const numbered: ExpertTensors = {
  layout: 'per-expert',
  gate: 'experts.{e}.w1.weight',
  up: 'experts.{e}.w3.weight',
  down: 'experts.{e}.w2.weight',
}
/** As transformers 5 keeps the experts in memory, and saves them where no conversion back is asked for. */
const fused: ExpertTensors = { layout: 'fused', gateUp: 'experts.gate_up_proj', down: 'experts.down_proj' }

// ---- the rows --------------------------------------------------------------------------------------------------------
const mixtral: Family = {
  name: 'Mixtral',
  modelTypes: ['mixtral'],
  tensors: { block: ['block_sparse_moe', 'mlp'], router: ['gate.weight'], experts: [numbered, fused] },
  spec: (config) => ({
    ...expertShape(config, 'intermediate_size', { hidden: 4096, inter: 14336 }),
    router: routers.mixtral(counts(config, 8, 2)),
    shared: null,
  }),
  moeLayers: everyLayer(32),
}

/** The same block; only the attention differs. */
const minimax: Family = { ...mixtral, name: 'MiniMax', modelTypes: ['minimax'] }

const qwen2Moe: Family = {
  name: 'Qwen2-MoE',
  modelTypes: ['qwen2_moe'],
  tensors: {
    block: ['mlp'],
    router: ['gate.weight'],
    experts: [projections, fused],
    shared: 'shared_expert',
    sharedGate: 'shared_expert_gate.weight',
  },
  spec: (config) => ({
    ...expertShape(config, 'moe_intermediate_size', { hidden: 2048, inter: 1408 }),
    router: routers.qwen2Moe({ ...counts(config, 60, 4), normTopkProb: normTopkProb(config, false) }),
    shared: { hiddenDim: config.integer(['shared_expert_intermediate_size'], 5632) },
  }),
  moeLayers: sparseStep(24),
}

const qwen3Next: Family = {
  ...qwen2Moe,
  name: 'Qwen3-Next',
  modelTypes: ['qwen3_next'],
  spec: (config) => ({
    ...expertShape(config, 'moe_intermediate_size', { hidden: 2048, inter: 512 }),
    router: routers.qwen3Next({ ...counts(config, 512, 10), normTopkProb: normTopkProb(config, true) }),
    shared: { hiddenDim: config.integer(['shared_expert_intermediate_size'], 512) },
  }),
  moeLayers: sparseStep(48),
}

const qwen3Moe: Family = {
  name: 'Qwen3-MoE',
  modelTypes: ['qwen3_moe'],
  tensors: { block: ['mlp'], router: ['gate.weight'], experts: [projections, fused] },
  spec: (config) => ({
    ...expertShape(config, 'moe_intermediate_size', { hidden: 2048, inter: 768 }),
    // Published checkpoints say true; where the key is missing, transformers' class default holds.
    router: routers.qwen3Moe({ ...counts(config, 128, 8), normTopkProb: normTopkProb(config, false) }),
    shared: null,
  }),
  moeLayers: sparseStep(24),
}

const olmoe: Family = {
  name: 'OLMoE',
  modelTypes: ['olmoe'],
  tensors: { block: ['mlp'], router: ['gate.weight'], experts: [projections, fused] },
  spec: (config) => ({
    ...expertShape(config, 'intermediate_size', { hidden: 2048, inter: 2048 }),
    router: routers.olmoe({ ...counts(config, 64, 8), normTopkProb: normTopkProb(config, false) }),
    shared: null,
  }),
  moeLayers: everyLayer(16),
}

const deepseekTensors: Family['tensors'] = {
  block: ['mlp'],
  router: ['gate.weight'],
  selectBias: ['gate.e_score_correction_bias'],
  experts: [projections, fused],
  shared: 'shared_experts',
}

const deepseekV3: Family = {
  name: 'DeepSeek-V3',
  modelTypes: ['deepseek_v3', 'kimi_k2'],
  tensors: deepseekTensors,
  spec(config) {
    const shape = expertShape(config, 'moe_intermediate_size', { hidden: 7168, inter: 2048 })
    const defaults = { groups: 8, keep: 4, scale: 2.5, normalized: true }
    const router = routers.deepseekV3(deepseekRouter(config, counts(config, 256, 8), defaults))
    return { ...shape, router, shared: sharedExperts(config, shape.hiddenDim, 1) }
  },
  moeLayers: afterDense(61, 3),
}

const glm4Moe: Family = {
  name: 'GLM-4.5',
  modelTypes: ['glm4_moe'],
  tensors: deepseekTensors,
  spec(config) {
    const shape = expertShape(config, 'moe_intermediate_size', { hidden: 4096, inter: 1408 })
    const defaults = { groups: 1, keep: 1, scale: 1, normalized: true }
    const router = routers.glm4Moe(deepseekRouter(config, counts(config, 128, 8), defaults))
    return { ...shape, router, shared: sharedExperts(config, shape.hiddenDim, 1) }
  },
  moeLayers: afterDense(46, 1),
}

const dots1: Family = {
  name: 'dots1',
  modelTypes: ['dots1'],
  tensors: deepseekTensors,
  spec(config) {
    const shape = expertShape(config, 'moe_intermediate_size', { hidden: 4608, inter: 1408 })
    const defaults = { groups: 1, keep: 1, scale: 1, normalized: false }
    const router = routers.dots1(deepseekRouter(config, counts(config, null, null), defaults))
    return { ...shape, router, shared: sharedExperts(config, shape.hiddenDim, 0) }
  },
  moeLayers: afterDense(62, 0),
}

const deepseekV2: Family = {
  name: 'DeepSeek-V2',
  modelTypes: ['deepseek_v2'],
  tensors: { block: ['mlp'], router: ['gate.weight'], experts: [projections, fused], shared: 'shared_experts' },
  spec(config) {
    const shape = expertShape(config, 'moe_intermediate_size', { hidden: 4096, inter: 1407 })
    const method = config.string(['topk_method'], 'greedy')
    if (method !== 'greedy' && method !== 'group_limited_greedy') {
      throw new UnsupportedError(
        `${config.file}: topk_method '${method}' is neither 'greedy' nor 'group_limited_greedy'`,
      )
    }
    if (normTopkProb(config, false)) {
      // transformers ignores it, DeepSeek's own code drops the scale with it: there is no one right answer.
      throw new UnsupportedError(`${config.file}: norm_topk_prob true has no agreed meaning for DeepSeek-V2`)
    }
    if (config.boolean(['mlp_bias'], false))
      throw new UnsupportedError(`${config.file}: mlp_bias true is not supported`)
    const chosen = counts(config, 64, null)
    const groups = method === 'greedy' ? null : groupsOf(config, chosen, null, null)
    const scale = config.number(['routed_scaling_factor'], 1)
    const router = routers.deepseekV2({ ...chosen, groups, scale })
    return { ...shape, router, shared: sharedExperts(config, shape.hiddenDim, 2) }
  },
  moeLayers: afterDense(32, 0),
}

const gptOss: Family = {
  name: 'GPT-OSS',
  modelTypes: ['gpt_oss'],
  tensors: {
    block: ['mlp'],
    router: ['router.weight'],
    routerBias: 'router.bias',
    experts: [
      {
        layout: 'fused-transposed',
        columns: 'interleaved',
        gateUp: 'experts.gate_up_proj',
        down: 'experts.down_proj',
        bias: { gateUp: 'experts.gate_up_proj_bias', down: 'experts.down_proj_bias' },
      },
    ],
  },
  spec: (config) => ({
    ...expertShape(config, 'intermediate_size', { hidden: 2880, inter: 2880 }),
    // GptOssExperts has its own gate whatever hidden_act says: 1.702 and 7 are constants there, the limit a key in published files.
    activation: 'clamped-swiglu',
    limit: config.number(['swiglu_limit'], 7),
    alpha: 1.702,
    router: routers.gptOss(counts(config, 128, 4)),
    shared: null,
  }),
  moeLayers: everyLayer(36),
}

const granite: Family = {
  name: 'Granite-MoE',
  modelTypes: ['granitemoe'],
  tensors: {
    block: ['block_sparse_moe'],
    router: ['router.layer.weight', 'router.weight'],
    experts: [{ layout: 'fused', gateUp: 'input_linear.weight', down: 'output_linear.weight' }, fused],
  },
  spec: (config) => ({
    ...expertShape(config, 'intermediate_size', { hidden: 4096, inter: 11008 }),
    router: routers.granite(counts(config, 8, 2)),
    shared: null,
  }),
  moeLayers: everyLayer(32),
}

const jamba: Family = {
  name: 'Jamba',
  modelTypes: ['jamba'],
  tensors: { block: ['feed_forward'], router: ['router.weight'], experts: [projections, fused] },
  spec: (config) => ({
    ...expertShape(config, 'intermediate_size', { hidden: 4096, inter: 14336 }),
    router: routers.jamba(counts(config, 16, 2)),
    shared: null,
  }),
  moeLayers(config) {
    const period = config.integer(['expert_layer_period'], 2)
    const offset = config.integer(['expert_layer_offset'], 1, 0, period - 1)
    // With one expert a plain MLP takes the block's place.
    if (config.integer(expertKeys, 16) === 1) return []
    return layersWhere(config, 32, (layer) => layer % period === offset)
  },
}

const phiMoe: Family = {
  name: 'Phi-MoE',
  modelTypes: ['phimoe'],
  tensors: { block: ['block_sparse_moe', 'mlp'], router: ['gate.weight', 'router.weight'], experts: [numbered, fused] },
  spec: (config) => ({
    ...expertShape(config, 'intermediate_size', { hidden: 4096, inter: 6400 }),
    router: routers.phiMoe({ ...counts(config, 16, 2), jitter: config.number(['router_jitter_noise'], 0.01) }),
    shared: null,
  }),
  moeLayers: everyLayer(32),
}

const ernie45: Family = {
  name: 'Ernie-4.5-MoE',
  modelTypes: ['ernie4_5_moe'],
  tensors: {
    block: ['mlp'],
    router: ['gate.weight'],
    selectBias: ['moe_statics.e_score_correction_bias', 'gate.moe_statics.e_score_correction_bias'],
    experts: [projections, fused],
    shared: 'shared_experts',
  },
  spec(config) {
    if (config.boolean(['use_bias'], false))
      throw new UnsupportedError(`${config.file}: use_bias true is not supported`)
    const shape = expertShape(config, 'moe_intermediate_size', { hidden: 2560, inter: 1536 })
    const normMin = config.number(['moe_norm_min'], 1e-12)
    const router = routers.ernie45({ ...counts(config, 64, 6), normMin })
    return { ...shape, router, shared: sharedExperts(config, shape.hiddenDim, 2, 'moe_num_shared_experts') }
  },
  moeLayers(config) {
    const first = config.integer(['moe_layer_start_index'], 1, 0)
    const last = config.integer(['moe_layer_end_index'], -1, -1)
    const step = config.integer(['moe_layer_interval'], 1)
    return layersWhere(config, 28, (i) => i >= first && (last === -1 || i <= last) && (i + 1) % step === 0)
  },
}

const llama4: Family = {
  name: 'Llama-4',
  modelTypes: ['llama4', 'llama4_text'],
  tensors: {
    block: ['feed_forward'],
    router: ['router.weight'],
    experts: [
      { layout: 'fused-transposed', columns: 'blocks', gateUp: 'experts.gate_up_proj', down: 'experts.down_proj' },
    ],
    shared: 'shared_expert',
  },
  spec(config) {
    const shape = expertShape(config, 'intermediate_size', { hidden: 5120, inter: 8192 })
    const router = routers.llama4(counts(config, 16, 1))
    return { ...shape, router, scaleInput: true, shared: { hiddenDim: shape.hiddenDim } }
  },
  moeLayers(config) {
    const listed = config.integers(['moe_layers'])
    const step = config.integer(['interleave_moe_layer_step'], 1)
    const chosen = listed === null ? null : new Set(listed)
    return layersWhere(config, 48, (layer) => (chosen === null ? (layer + 1) % step === 0 : chosen.has(layer)))
  },
}

/** Every family that can be read. */
export const families: readonly Family[] = [
  mixtral,
  qwen2Moe,
  qwen3Moe,
  qwen3Next,
  olmoe,
  deepseekV2,
  deepseekV3,
  glm4Moe,
  dots1,
  gptOss,
  granite,
  jamba,
  phiMoe,
  ernie45,
  minimax,
  llama4,
]

/** @throws UnsupportedError that lists the known `model_type`s */
export function familyOf(config: ModelConfig): Family {
  const family = families.find((row) => row.modelTypes.includes(config.modelType))
  if (family !== undefined) return family
  const known = families.flatMap((row) => row.modelTypes).sort()
  throw new UnsupportedError(
    `${config.file}: model_type '${config.modelType}' is not known; known are ${known.join(', ')}`,
  )
}
