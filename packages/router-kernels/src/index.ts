/**
 * The primitives of a Mixture-of-Experts layer: route tokens, run grouped experts, combine their rows. Device tensors in, device tensors
 * out, stream-ordered.
 *
 * @packageDocumentation
 */
export { type CombineMode, type CombineOptions, combine } from './combine.js'
export type {
  ExpertsForwardOptions,
  ExpertsShape,
  GroupedExpertsOptions,
  RandomExpertsOptions,
} from './experts-options.js'
export { GroupedExperts } from './grouped-experts.js'
export type { Activation, FloatDType, GatedActivation, MlpKind, MlpSpec, PlainActivation } from './mlp-options.js'
export {
  type DeepseekPresetOptions,
  type ErniePresetOptions,
  type NormalizingPresetOptions,
  type PhiMoePresetOptions,
  type PresetOptions,
  routers,
} from './presets.js'
export type { RoutedTokens } from './routed-tokens.js'
export { type RouteOptions, Router } from './router.js'
export type {
  Normalize,
  RouterGroups,
  RouterOptions,
  RouterRule,
  RouterSteps,
  Score,
  Weigh,
} from './router-options.js'
