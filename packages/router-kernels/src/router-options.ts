/**
 * A router as a composition of named steps: score → select → weigh → normalise. A model family is one combination of them
 * (see `presets.ts`), so that a new family is a new row of options and never a new kernel.
 */
import {
  checkInteger,
  checkNumber,
  checkOneOf,
  checkOptions,
  type DeviceSpec,
  describe,
  type Stream,
  type Tensor,
} from '@nexus/native'
import { maxFloat } from './mlp-options.js'
import type { RawRouterDesc } from './native.js'

/** How a logit becomes an expert's score p: softmax over all experts, σ(logit), or the logit itself. */
export type Score = 'softmax' | 'sigmoid' | 'identity'
/**
 * From what a chosen expert's weight is made: its score p, the softmax over the k chosen logits, σ of its logit, or Phi-3.5-MoE's
 * sparsemixer.
 */
export type Weigh = 'score' | 'softmax-chosen' | 'sigmoid-chosen' | 'sparsemixer'
/** `sum`: w / (Σw + epsilon); `clamped-sum`: w / max(Σw, epsilon). */
export type Normalize = 'none' | 'sum' | 'clamped-sum'

/** Group-limited choice: only experts of the best `keep` of `count` equal, contiguous groups can be chosen. */
export interface RouterGroups {
  /** Number of groups; divides the number of experts. */
  readonly count: number
  /** How many groups stay; together they hold at least `topK` experts. */
  readonly keep: number
  /** A group's value: its largest score, or the sum of its best two (DeepSeek-V3). */
  readonly by: 'max' | 'top2-sum'
}

/** The steps of a routing rule, without weights or placement. */
export interface RouterSteps {
  /** @default 'softmax' */
  readonly score?: Score
  /** @default null: every expert can be chosen */
  readonly groups?: RouterGroups | null
  /** @default 'score' */
  readonly weigh?: Weigh
  /** The masking threshold of sparsemixer; no other rule uses it. @default 0.01 */
  readonly jitter?: number
  /** @default 'sum' */
  readonly normalize?: Normalize
  /** @default 0 */
  readonly epsilon?: number
  /** Multiplies the weights, last. @default 1 */
  readonly scale?: number
}

/** A routing rule for so many experts: what a preset of {@link routers} returns. */
export interface RouterRule extends RouterSteps {
  /** 1 to 1024. */
  readonly numExperts: number
  /** Experts per token: 1 to 32, at most `numExperts`. */
  readonly topK: number
}

/** Options of {@link Router}: the rule, the weights of its own product, and where it runs. */
export interface RouterOptions extends RouterRule {
  /** f32 [numExperts], added to the scores for the choice only, never to the weights. @default null */
  readonly selectBias?: Float32Array | Tensor | null
  /**
   * [numExperts, inputDim], f32 or the tokens' dtype. Without it the router takes logits only. The caller keeps it and disposes
   * of it. @default null
   */
  readonly weight?: Tensor | null
  /** f32 [numExperts], added to the router's own product. @default null */
  readonly bias?: Float32Array | Tensor | null
  /** Columns of the tokens. @default that of `weight` */
  readonly inputDim?: number
  /** @default the device of `weight`, else 'auto' */
  readonly device?: DeviceSpec
  /** @default the device's default stream */
  readonly stream?: Stream
}

const scores = ['softmax', 'sigmoid', 'identity'] as const
const weighs = ['score', 'softmax-chosen', 'sigmoid-chosen', 'sparsemixer'] as const
const normalizes = ['none', 'sum', 'clamped-sum'] as const
const groupValues = ['max', 'top2-sum'] as const

export const maxExperts = 1024
export const maxTopK = 32
/** Names of {@link RouterRule}'s fields, for the checks of those who embed it. */
export const routerRuleKeys = [
  'numExperts',
  'topK',
  'score',
  'groups',
  'weigh',
  'jitter',
  'normalize',
  'epsilon',
  'scale',
] as const satisfies readonly (keyof RouterRule)[]

/**
 * Checks a rule and gives its native descriptor.
 * @throws TypeError or RangeError naming the option
 */
export function routerDesc(rule: RouterRule): RawRouterDesc {
  const { numExperts, topK, groups = null } = rule
  checkInteger('numExperts', numExperts, 1, maxExperts)
  checkInteger('topK', topK, 1, Math.min(maxTopK, numExperts))
  const score = rule.score ?? 'softmax'
  const weigh = rule.weigh ?? 'score'
  const normalize = rule.normalize ?? 'sum'
  const { jitter = 0.01, epsilon = 0, scale = 1 } = rule
  checkOneOf('score', score, scores)
  checkOneOf('weigh', weigh, weighs)
  checkOneOf('normalize', normalize, normalizes)
  checkNumber('jitter', jitter, 0, maxFloat)
  checkNumber('epsilon', epsilon, 0, maxFloat)
  checkNumber('scale', scale, -maxFloat, maxFloat)
  if (groups !== null) {
    if (weigh === 'sparsemixer') throw new TypeError(`groups must be null with weigh 'sparsemixer', got an object`)
    checkGroups(groups, numExperts, topK)
  }
  return {
    experts: numExperts,
    topK,
    score: scores.indexOf(score),
    groups: groups?.count ?? 1,
    keepGroups: groups?.keep ?? 1,
    groupValue: groups === null ? 0 : groupValues.indexOf(groups.by),
    weigh: weighs.indexOf(weigh),
    jitter,
    normalize: normalizes.indexOf(normalize),
    epsilon,
    scale,
  }
}

/** @throws TypeError: sparsemixer chooses by the logits alone */
export function checkSelectBias(name: string, value: unknown, rule: RouterRule): void {
  if (rule.weigh !== 'sparsemixer' || value === null || value === undefined) return
  throw new TypeError(`${name} must be null with weigh 'sparsemixer', got ${describe(value)}`)
}

function checkGroups(groups: RouterGroups, numExperts: number, topK: number): void {
  checkOptions('groups', groups, ['count', 'keep', 'by'])
  checkInteger('groups.count', groups.count, 1, numExperts)
  checkInteger('groups.keep', groups.keep, 1, groups.count)
  checkOneOf('groups.by', groups.by, groupValues)
  if (numExperts % groups.count !== 0) {
    throw new RangeError(`groups.count must divide numExperts (${numExperts}), got ${groups.count}`)
  }
  const kept = (groups.keep * numExperts) / groups.count
  if (kept < topK) {
    throw new RangeError(
      `groups.keep must leave at least topK (${topK}) experts, got ${groups.keep} groups with ${kept}`,
    )
  }
}
