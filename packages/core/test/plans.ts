/** Random execution plans for a layer, and the layers that they are tried on. */
import * as fc from 'fast-check'
import { type AllocationPolicy, assignments, type MoELayerOptions, policies, routers } from '../src/index.js'

const counts = { numExperts: 8, topK: 2 }

/** Few and small: sizes that divide nothing, a gated shared expert, concat, and sizes that tensor cores like. */
export const shapes: readonly MoELayerOptions[] = [
  { inputDim: 19, hiddenDim: 13, outputDim: 11, numExperts: 7, topK: 3, dtype: 'f32' },
  {
    inputDim: 16,
    hiddenDim: 24,
    ...counts,
    router: routers.qwen2Moe(counts),
    shared: { hiddenDim: 17, gate: true },
    dtype: 'f32',
  },
  { inputDim: 24, hiddenDim: 8, outputDim: 10, numExperts: 12, topK: 2, activation: 'geglu', combine: 'concat' },
  { inputDim: 128, hiddenDim: 64, numExperts: 16, topK: 4, dtype: 'bf16' },
]
export const tokenCounts = [0, 1, 2, 3, 7, 8, 13, 16, 17, 24, 33, 64] as const

/** Another arrangement at every decision, by nothing but the step and a seed: what a user's policy may come up with. */
export function restless(seed: number): AllocationPolicy {
  return {
    name: 'restless',
    decide({ step, load, constraints }) {
      const { sms, granularity, minSms } = constraints
      const random = mulberry(seed * 7919 + step)
      const portion = Math.max(granularity, Math.ceil(minSms / granularity) * granularity)
      const most = Math.max(1, Math.min(constraints.slices, load.length, Math.floor(sms / portion)))
      const slices = 1 + Math.floor(random() * most)
      const sizes = new Array<number>(slices).fill(portion)
      for (let left = sms - slices * portion; left > 0; ) {
        const s = Math.floor(random() * slices)
        const more = Math.min(left, granularity)
        sizes[s] = (sizes[s] ?? 0) + more
        left -= more
      }
      const first = Math.floor(random() * load.length)
      const sliceOf = load.map((_, e) => {
        const at = (e + first) % load.length
        return at < slices ? at : Math.floor(random() * slices)
      })
      return { sms: sizes, sliceOf, reason: `by seed ${seed} at step ${step}` }
    },
  }
}

function mulberry(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

const policy = fc.oneof(
  fc.constantFrom(policies.static, policies.dynamic, policies.proportional, policies.adaptive).map((make) => make()),
  fc.nat(999).map(restless),
)
const step = fc.record({
  tokens: fc.integer({ min: 0, max: tokenCounts.length - 1 }),
  how: fc.constantFrom('enqueue' as const, 'forward' as const),
  logits: fc.boolean(),
  /** On another stream than the layer's own. */
  elsewhere: fc.boolean(),
})

/** A way to run a layer, and what happens to it on the way. */
export const plans = fc.record({
  shape: fc.integer({ min: 0, max: shapes.length - 1 }),
  strategy: fc.constantFrom('tiered', 'streams', 'cooperative', 'auto', 'tiered', 'cooperative', 'fused'),
  policy,
  slices: fc.integer({ min: 1, max: 4 }),
  /** A slice for the shared expert, where there is one. */
  aux: fc.boolean(),
  streams: fc.integer({ min: 1, max: 5 }),
  assignment: fc.constantFrom(...Object.values(assignments)).map((make) => make()),
  captureAfter: fc.option(fc.integer({ min: 1, max: 2 })),
  updateEverySteps: fc.integer({ min: 1, max: 3 }),
  before: fc.array(step, { minLength: 1, maxLength: 12 }),
  after: fc.array(step, { minLength: 1, maxLength: 12 }),
  midway: fc.record({
    early: fc.boolean(),
    /** Portions of a slice that is reserved, then resized by one more. */
    portions: fc.option(fc.integer({ min: 1, max: 3 })),
    resize: fc.boolean(),
    migrate: fc.option(fc.nat(6)),
  }),
  /** Tokens of the steps that prove what was run. */
  proof: fc.constantFrom(13 as const, 24 as const, 33 as const, 64 as const),
})
export type RandomPlan = typeof plans extends fc.Arbitrary<infer T> ? T : never
