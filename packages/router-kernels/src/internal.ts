/**
 * For the other Nexus packages only: checks and native descriptors that a layer shares with the primitives. Not a public surface, and
 * free to change in any release.
 *
 * @internal
 */
export { checkTensor, sizeAt, type TensorExpectation } from './check.js'
export { combineModes } from './combine.js'
export {
  checkFloatDType,
  checkMlpSpec,
  defaultActivation,
  epilogueCode,
  type LinearShape,
  linearShapes,
  mlpDesc,
} from './mlp-options.js'
export { readOn, readOrNull, writeOn } from './native.js'
export { checkSelectBias, maxExperts, maxTopK, routerDesc, routerRuleKeys } from './router-options.js'
