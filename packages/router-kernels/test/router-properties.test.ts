/** What holds for every router, rule and batch. */
import { Tensor } from '@nexus/native'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { Router, type RouterRule } from '../src/index.js'
import { onEachDevice } from './support/devices.js'
import { bucketsOracle } from './support/router-oracle.js'

interface Case {
  readonly rule: RouterRule
  readonly tokens: number
  readonly logits: Float32Array
}

/** Few distinct values, so that ties are common. */
const coarse = fc.integer({ min: -8, max: 8 }).map((v) => v / 4)

const cases: fc.Arbitrary<Case> = fc
  .record({
    groupSize: fc.integer({ min: 1, max: 9 }),
    groupCount: fc.integer({ min: 1, max: 8 }),
    keep: fc.integer({ min: 1, max: 8 }),
    k: fc.integer({ min: 1, max: 32 }),
    tokens: fc.integer({ min: 0, max: 40 }),
    score: fc.constantFrom('softmax' as const, 'sigmoid' as const),
    by: fc.constantFrom('max' as const, 'top2-sum' as const),
    scale: fc.constantFrom(1, 2.5),
  })
  .chain(({ groupSize, groupCount, keep, k, tokens, score, by, scale }) => {
    const numExperts = groupSize * groupCount
    const kept = Math.min(keep, groupCount)
    const topK = Math.min(k, kept * groupSize)
    const groups = groupCount > 1 ? { count: groupCount, keep: kept, by } : null
    const rule: RouterRule = { numExperts, topK, score, groups, scale }
    return fc
      .array(coarse, { minLength: tokens * numExperts, maxLength: tokens * numExperts })
      .map((values) => ({ rule, tokens, logits: Float32Array.from(values) }))
  })

onEachDevice('every routing', (device) => {
  async function routed({ rule, tokens, logits: values }: Case) {
    using router = new Router({ ...rule, device })
    using logits = Tensor.from(values, [tokens, rule.numExperts], { device })
    using result = router.route(null, logits)
    const [ids, weights, counts, offsets, order] = await Promise.all([
      result.expertIds.toArray(),
      result.weights.toFloat32Array(),
      result.counts.toArray(),
      result.offsets.toArray(),
      result.order.toArray(),
    ])
    return { ids, weights, counts, offsets, order }
  }

  test('chooses distinct experts in range, better ones first, ties by the lower index', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const { numExperts, topK } = given.rule
        const { ids } = await routed(given)
        for (let t = 0; t < given.tokens; t++) {
          const chosen = [...ids.subarray(t * topK, (t + 1) * topK)]
          expect(new Set(chosen).size).toBe(topK)
          expect(chosen.every((e) => e >= 0 && e < numExperts)).toBe(true)
          const logit = (e: number | undefined): number => given.logits[t * numExperts + (e ?? 0)] ?? Number.NaN
          for (let j = 1; j < topK; j++) {
            const [a, b] = [chosen[j - 1] ?? -1, chosen[j] ?? -1]
            expect(logit(a) > logit(b) || (logit(a) === logit(b) && a < b)).toBe(true)
          }
        }
      }),
      { numRuns: 60 },
    )
  })

  test('weighs to a sum of `scale` where it normalises', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const { topK, scale = 1 } = given.rule
        const { weights } = await routed(given)
        for (let t = 0; t < given.tokens; t++) {
          const sum = weights.subarray(t * topK, (t + 1) * topK).reduce((a, b) => a + b, 0)
          expect(Math.abs(sum / scale - 1)).toBeLessThan(1e-5)
        }
      }),
      { numRuns: 60 },
    )
  })

  test('buckets: counts sum to tokens·topK, offsets are their prefix sum, order is the stable sort', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const { ids, counts, offsets, order } = await routed(given)
        expect([...counts].reduce((a, b) => a + b, 0)).toBe(given.tokens * given.rule.topK)
        expect({ counts, offsets, order }).toEqual(bucketsOracle(ids, given.rule.numExperts))
      }),
      { numRuns: 60 },
    )
  })

  test('is the same on every run', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        expect(await routed(given)).toEqual(await routed(given))
      }),
      { numRuns: 20 },
    )
  })
})
