/**
 * The routing rules of published model families, each as one combination of the steps in `router-options.ts`. Checked against the
 * models' source in Hugging Face transformers 5.17 (`models/<family>/modeling_<family>.py`).
 */
import { checkOptions } from '@nexus/native'
import type { RouterGroups, RouterRule } from './router-options.js'

/** What every preset needs. */
export interface PresetOptions {
  readonly numExperts: number
  readonly topK: number
}

/** Presets whose family decides by `norm_topk_prob` of its config. */
export interface NormalizingPresetOptions extends PresetOptions {
  /** Divide the chosen probabilities by their sum: `norm_topk_prob`. The default is the family's. */
  readonly normTopkProb?: boolean
}

/** Presets of the DeepSeek line. */
export interface DeepseekPresetOptions extends NormalizingPresetOptions {
  /** `n_group` and `topk_group`. @default null: no groups */
  readonly groups?: { readonly count: number; readonly keep: number } | null
  /** `routed_scaling_factor`. The default is the family's. */
  readonly scale?: number
}

/** Options of the Ernie-4.5 preset. */
export interface ErniePresetOptions extends PresetOptions {
  /** `moe_norm_min`: the least divisor. @default 1e-12 */
  readonly normMin?: number
}

/** Options of the Phi-3.5-MoE preset. */
export interface PhiMoePresetOptions extends PresetOptions {
  /** `router_jitter_noise`, the masking threshold. @default 0.01 */
  readonly jitter?: number
}

const base = ['numExperts', 'topK']

function checked<T extends PresetOptions>(name: string, options: T, extra: readonly string[] = []): RouterRule {
  checkOptions(`routers.${name} options`, options, [...base, ...extra])
  return { numExperts: options.numExperts, topK: options.topK }
}

function softmaxTopK(name: string, options: NormalizingPresetOptions, normalizes: boolean): RouterRule {
  const rule = checked(name, options, ['normTopkProb'])
  return { ...rule, score: 'softmax', normalize: (options.normTopkProb ?? normalizes) ? 'sum' : 'none' }
}

function groupsBy(by: RouterGroups['by'], groups: DeepseekPresetOptions['groups']): RouterGroups | null {
  return groups ? { count: groups.count, keep: groups.keep, by } : null
}

const deepseekKeys = ['normTopkProb', 'groups', 'scale']

function sigmoidWithBias(name: string, options: DeepseekPresetOptions, scale: number): RouterRule {
  const rule = checked(name, options, deepseekKeys)
  const normalized = options.normTopkProb ?? true
  return {
    ...rule,
    score: 'sigmoid',
    groups: groupsBy('top2-sum', options.groups),
    normalize: normalized ? 'sum' : 'none',
    epsilon: normalized ? 1e-20 : 0,
    scale: options.scale ?? scale,
  }
}

/**
 * Routing rules by model family. Each is a function of the counts (and of what the family's config can change) that returns the
 * options of a {@link Router}, or the `router` of a layer.
 *
 * @example
 * const router = new Router({ ...routers.qwen3Moe({ numExperts: 128, topK: 8 }), weight })
 */
export const routers = {
  /** p = softmax(logits); the k largest; w = p / Σp. Source: Mixtral (`MixtralTopKRouter`). */
  mixtral: (options: PresetOptions): RouterRule => ({
    ...checked('mixtral', options),
    score: 'softmax',
    normalize: 'sum',
  }),

  /** p = softmax(logits); the k largest; w = p, divided by Σp only with `normTopkProb` (default false). Source: Qwen2-MoE. */
  qwen2Moe: (options: NormalizingPresetOptions): RouterRule => softmaxTopK('qwen2Moe', options, false),

  /**
   * p = softmax(logits); the k largest; w = p / Σp, or p without `normTopkProb` (default true, as in the released checkpoints).
   * Source: Qwen3-MoE.
   */
  qwen3Moe: (options: NormalizingPresetOptions): RouterRule => softmaxTopK('qwen3Moe', options, true),

  /** p = softmax(logits); the k largest; w = p, divided by Σp only with `normTopkProb` (default false). Source: OLMoE. */
  olmoe: (options: NormalizingPresetOptions): RouterRule => softmaxTopK('olmoe', options, false),

  /** p = softmax(logits); the k largest; w = p / Σp. Source: MiniMax-Text-01. */
  minimax: (options: PresetOptions): RouterRule => ({
    ...checked('minimax', options),
    score: 'softmax',
    normalize: 'sum',
  }),

  /** p = softmax(logits); the k largest; w = p. Source: Jamba. */
  jamba: (options: PresetOptions): RouterRule => ({
    ...checked('jamba', options),
    score: 'softmax',
    normalize: 'none',
  }),

  /**
   * p = softmax(logits); the k largest (`greedy`), or the k largest within the groups whose maximum is largest
   * (`group_limited_greedy`, with `groups`); w = p × `scale` (default 1). Source: DeepSeek-V2.
   */
  deepseekV2: (options: DeepseekPresetOptions): RouterRule => ({
    ...checked('deepseekV2', options, deepseekKeys),
    score: 'softmax',
    groups: groupsBy('max', options.groups),
    normalize: (options.normTopkProb ?? false) ? 'sum' : 'none',
    scale: options.scale ?? 1,
  }),

  /**
   * p = σ(logits); chosen on p + `e_score_correction_bias` (the `selectBias`) within the groups whose best two sum highest;
   * w = p / (Σp + 1e-20) × `scale` (default 2.5). Source: DeepSeek-V3.
   */
  deepseekV3: (options: DeepseekPresetOptions): RouterRule => sigmoidWithBias('deepseekV3', options, 2.5),

  /** {@link routers.deepseekV3}'s rule with `scale` 2.827 by default. Source: Kimi-K2. */
  kimi: (options: DeepseekPresetOptions): RouterRule => sigmoidWithBias('kimi', options, 2.827),

  /** {@link routers.deepseekV3}'s rule with `scale` 1 by default. Source: GLM-4.5 (`glm4_moe`). */
  glm4Moe: (options: DeepseekPresetOptions): RouterRule => sigmoidWithBias('glm4Moe', options, 1),

  /** {@link routers.deepseekV3}'s rule with `scale` 1 by default. Source: dots.llm1 (`dots1`). */
  dots1: (options: DeepseekPresetOptions): RouterRule => sigmoidWithBias('dots1', options, 1),

  /** The k largest logits (which include the router's bias); w = softmax over those k. Source: GPT-OSS. */
  gptOss: (options: PresetOptions): RouterRule => ({
    ...checked('gptOss', options),
    score: 'identity',
    weigh: 'softmax-chosen',
    normalize: 'none',
  }),

  /**
   * The k largest logits; w = σ(logit), which scales the expert's input and not its output: use it with a layer's
   * `scaleInput: true`. Source: Llama-4.
   */
  llama4: (options: PresetOptions): RouterRule => ({
    ...checked('llama4', options),
    score: 'identity',
    weigh: 'sigmoid-chosen',
    normalize: 'none',
  }),

  /** The k largest logits; w = softmax over those k. Source: Granite-MoE. */
  granite: (options: PresetOptions): RouterRule => ({
    ...checked('granite', options),
    score: 'identity',
    weigh: 'softmax-chosen',
    normalize: 'none',
  }),

  /**
   * p = softmax(logits); chosen on p + the correction bias (the `selectBias`); w = p / max(Σp, `normMin`). Source: Ernie-4.5-MoE.
   */
  ernie45: (options: ErniePresetOptions): RouterRule => ({
    ...checked('ernie45', options, ['normMin']),
    score: 'softmax',
    normalize: 'clamped-sum',
    epsilon: options.normMin ?? 1e-12,
  }),

  /**
   * p = softmax(logits); the k largest; w = p / Σp, or p without `normTopkProb` (default true). The shared expert is weighted by
   * σ(x·w): a layer's `shared.gate`. Source: Qwen3-Next.
   */
  qwen3Next: (options: NormalizingPresetOptions): RouterRule => softmaxTopK('qwen3Next', options, true),

  /**
   * sparsemixer, at inference: each round takes the largest remaining logit m and weighs it by the softmax over the remaining logits l with
   * (m − l) / max(|l|, m) ≤ 2·jitter. Source: Phi-3.5-MoE (`sparsemixer`).
   */
  phiMoe: (options: PhiMoePresetOptions): RouterRule => ({
    ...checked('phiMoe', options, ['jitter']),
    score: 'identity',
    weigh: 'sparsemixer',
    jitter: options.jitter ?? 0.01,
    normalize: 'none',
  }),
} as const
