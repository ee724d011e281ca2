/** What is left out of a decision because it cannot matter: the decision is the one that working everything out leads to. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Arranger } from '../src/arrange.js'
import { decide } from '../src/guard.js'
import {
  type AllocationPolicy,
  type Constraints,
  type CostModel,
  type Decision,
  gatedExpertCost,
  h200,
  type PolicySnapshot,
  policies,
  tileCost,
} from '../src/index.js'
import { h200Tiles } from './support/h200-tiles.js'

const leastGain = 0.005

/** `adaptive` by time for a current placement that can go on, without any bound: everything is arranged, then compared. */
function worked({ load, current, constraints, cost, step }: PolicySnapshot): Decision {
  const arranger = new Arranger()
  arranger.take(load, constraints, cost)
  if (current === null) throw new Error('expected a current placement')
  const stay = arranger.predict(current).stepUs
  const price = cost === null ? 0 : constraints.switchUs / Math.max(1, constraints.dwellSteps)
  const kept = arranger.keeping(current.sms)
  const resized = arranger.arrange()
  const may = step - current.sinceStep >= constraints.dwellSteps
  const sooner = may && resized.predicted.stepUs + price < kept.predicted.stepUs
  const least = sooner ? resized.predicted.stepUs + price : kept.predicted.stepUs
  const basis = 'the last window'
  if (least >= stay * (1 - leastGain)) {
    return { sms: current.sms, sliceOf: current.sliceOf, reason: `kept: no change is worth it by ${basis}` }
  }
  const gain = ((1 - least / stay) * 100).toFixed(1)
  const what = sooner ? 'slices resized' : 'experts moved between slices'
  return { ...arranger.placement(sooner ? resized : kept), reason: `${what} for ${basis}: ${gain} % sooner` }
}

/** A memory with so many times less to give is the limit oftener. */
const byTiles = (part: number) =>
  tileCost({ ...h200Tiles, memoryBytesPerSecond: part * h200Tiles.memoryBytesPerSecond })

const costs: readonly (CostModel | null)[] = [1, 0.02].flatMap((weights) => {
  const plain = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
  const model = { ...plain, weightBytes: plain.weightBytes * weights }
  const others = { stepUs: 9, perSliceUs: 2, perAssignmentUs: 1e-3, exposed: 0.2, rowTile: 64 }
  return [
    model,
    { ...model, overlap: 'slice' as const },
    { ...model, ...others, contention: 0.2, walkUs: 0.3 },
    byTiles(weights),
    null,
  ]
})

describe('adaptive', () => {
  test('decides as if it had worked out every change, also where the memory bounds the step', () => {
    const policy = policies.adaptive({ leastGain })
    const load = fc.tuple(
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 6, maxLength: 48 }),
      fc.nat(9),
    )
    const seen = { kept: 0, 'experts moved': 0, 'slices resized': 0 }
    const property = fc.property(
      load,
      fc.integer({ min: 0, max: 5 }),
      fc.constantFrom(...costs),
      fc.constantFrom(0, 3, 40),
      fc.constantFrom(0, 8),
      fc.nat(16),
      fc.integer({ min: 2, max: 5 }),
      ([weights, power], scale, cost, switchUs, dwellSteps, age, slices) => {
        const now = weights.map((x) => 10 ** (scale - 1) * x ** power)
        const constraints: Constraints = { sms: 132, granularity: 8, minSms: 8, slices, dwellSteps, switchUs }
        const given = {
          temperatures: now.map(() => 'unknown' as const),
          forecast: null,
          utilization: null,
          constraints,
          cost,
        }
        const first = policy.decide({ ...given, step: 0, load: now.toReversed(), current: null })
        for (const at of [now, now.toReversed().map((x) => 1.1 * x), now.map((x) => x * x)]) {
          const current = { sms: first.sms, sliceOf: first.sliceOf, sinceStep: 0 }
          const snapshot: PolicySnapshot = { ...given, step: age, load: at, current }
          const made = policy.decide(snapshot)
          expect(made).toEqual(worked(snapshot))
          for (const kind of ['kept', 'experts moved', 'slices resized'] as const) {
            if (made.reason.startsWith(kind)) seen[kind]++
          }
        }
      },
    )
    fc.assert(property, { numRuns: 400, seed: 1 })
    for (const count of Object.values(seen)) expect(count).toBeGreaterThan(10)
  })
})

describe('a decision is copied unless it is given away', () => {
  const load = [9, 8, 7, 6]
  const constraints: Constraints = { sms: 132, granularity: 8, minSms: 8, slices: 2, dwellSteps: 0, switchUs: 0 }
  const snapshot: PolicySnapshot = {
    step: 0,
    load,
    temperatures: load.map(() => 'unknown'),
    forecast: null,
    current: null,
    utilization: null,
    constraints,
    cost: null,
  }

  test.each(Object.entries(policies))('what %s gives away is in nobody else’s hands', (_, make) => {
    const policy = make()
    const first = decide(policy, snapshot)
    const current = { sms: first.sms, sliceOf: first.sliceOf, sinceStep: 0 }
    const second = decide(policy, { ...snapshot, step: 1, current })
    const third = decide(policy, { ...snapshot, step: 1, current })
    for (const own of [first, third]) {
      expect(second.sms).not.toBe(own.sms)
      expect(second.sliceOf).not.toBe(own.sliceOf)
    }
    expect(second.sliceOf).toEqual(third.sliceOf)
  })

  test('a built-in policy that is wrapped may keep what it returned', () => {
    const inner = policies.adaptive()
    let last: Decision | null = null
    const keeping: AllocationPolicy = {
      name: 'keeping',
      decide: (given) => {
        last = inner.decide(given)
        return last
      },
    }
    const made = decide(keeping, snapshot)
    expect(made).toEqual(last)
    expect(made.sliceOf).not.toBe((last as Decision | null)?.sliceOf)
    const replaced = { ...inner, decide: keeping.decide }
    expect(decide(replaced, snapshot).sliceOf).not.toBe((last as Decision | null)?.sliceOf)
  })
})
