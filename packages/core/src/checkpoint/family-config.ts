/** What several rows of the families table read from `config.json` alike: sizes, activation, groups, which layers are MoE. */
import { UnsupportedError } from '@nexus/native'
import type { GatedActivation } from '@nexus/router-kernels'
import type { ModelConfig } from './config.js'
import { failure } from './failure.js'
import type { LayerSpec } from './family.js'

export const expertKeys = ['num_experts', 'num_local_experts', 'n_routed_experts', 'moe_num_experts'] as const
const topKKeys = ['num_experts_per_tok', 'experts_per_token', 'moe_k'] as const

/** An expert's sizes and activation; `interKey` is the key that holds its inner width. */
export function expertShape(
  config: ModelConfig,
  interKey: 'moe_intermediate_size' | 'intermediate_size',
  defaults: { readonly hidden: number; readonly inter: number },
) {
  return {
    inputDim: config.integer(['hidden_size'], defaults.hidden),
    hiddenDim: config.integer([interKey], defaults.inter),
    activation: gatedActivation(config),
  }
}

/** How many experts there are and how many a token takes. A default of null: transformers has none, the key must be there. */
export function counts(config: ModelConfig, experts: number | null, topK: number | null) {
  const numExperts = config.integer(expertKeys, experts, 1, 1024)
  return { numExperts, topK: config.integer(topKKeys, topK, 1, Math.min(32, numExperts)) }
}

/** transformers' ACT2FN names, as the gated activation that has them on its gate. */
const activations: ReadonlyMap<string, GatedActivation> = new Map([
  ['silu', 'swiglu'],
  ['swish', 'swiglu'],
  ['gelu', 'geglu'],
  ['gelu_new', 'geglu-tanh'],
  ['gelu_fast', 'geglu-tanh'],
  ['gelu_pytorch_tanh', 'geglu-tanh'],
  ['relu', 'reglu'],
])

function gatedActivation(config: ModelConfig): GatedActivation {
  const name = config.string(['hidden_act'], 'silu')
  const activation = activations.get(name)
  if (activation === undefined) {
    throw new UnsupportedError(`${config.file}: hidden_act '${name}' is none of ${[...activations.keys()].join(', ')}`)
  }
  return activation
}

/** Whether the chosen probabilities are divided by their sum. */
export const normTopkProb = (config: ModelConfig, fallback: boolean) => config.boolean(['norm_topk_prob'], fallback)

/** What DeepSeek-V3's router reads; GLM-4.5 and dots1 have it too. */
export function deepseekRouter(
  config: ModelConfig,
  chosen: { readonly numExperts: number; readonly topK: number },
  defaults: { readonly groups: number; readonly keep: number; readonly scale: number; readonly normalized: boolean },
) {
  return {
    ...chosen,
    groups: groupsOf(config, chosen, defaults.groups, defaults.keep),
    normTopkProb: normTopkProb(config, defaults.normalized),
    scale: config.number(['routed_scaling_factor'], defaults.scale),
  }
}

/** `n_group` and `topk_group`; one group is the same as none. */
export function groupsOf(
  config: ModelConfig,
  chosen: { readonly numExperts: number; readonly topK: number },
  countDefault: number | null,
  keepDefault: number | null,
) {
  const { numExperts, topK } = chosen
  const count = config.integer(['n_group'], countDefault, 1, numExperts)
  const keep = config.integer(['topk_group'], keepDefault, 1, count)
  if (count === 1) return null
  if (numExperts % count !== 0)
    throw failure({ file: config.file }, `n_group ${count} does not divide ${numExperts} experts`)
  const left = (keep * numExperts) / count
  if (left < topK) {
    throw failure({ file: config.file }, `topk_group ${keep} leaves ${left} experts, fewer than the ${topK} of a token`)
  }
  return { count, keep }
}

/** `n_shared_experts` experts side by side are one expert of their joint width. */
export function sharedExperts(
  config: ModelConfig,
  hiddenDim: number,
  fallback: number,
  key = 'n_shared_experts',
): LayerSpec['shared'] {
  const count = config.integer([key], fallback, 0)
  return count === 0 ? null : { hiddenDim: count * hiddenDim }
}

/** The layers of the model that `isMoE` picks; `fallback` is the default of `num_hidden_layers`. */
export function layersWhere(
  config: ModelConfig,
  fallback: number,
  isMoE: (layer: number) => boolean,
): readonly number[] {
  const layers = config.integer(['num_hidden_layers'], fallback, 1, 100_000)
  return Array.from({ length: layers }, (_, layer) => layer).filter(isMoE)
}

/** Every layer has experts. */
export const everyLayer = (fallback: number) => (config: ModelConfig) => layersWhere(config, fallback, () => true)

/** The first `first_k_dense_replace` layers are dense. */
export const afterDense = (layers: number, dense: number) => (config: ModelConfig) => {
  const first = config.integer(['first_k_dense_replace'], dense, 0)
  return layersWhere(config, layers, (layer) => layer >= first)
}

/** Qwen: every `decoder_sparse_step`th layer, but for `mlp_only_layers`. */
export const sparseStep = (layers: number) => (config: ModelConfig) => {
  const step = config.integer(['decoder_sparse_step'], 1)
  const dense = new Set(config.integers(['mlp_only_layers']) ?? [])
  return layersWhere(config, layers, (layer) => !dense.has(layer) && (layer + 1) % step === 0)
}
