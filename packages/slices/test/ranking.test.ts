/** What decisions are quick by, held against the plain way of doing it: the same numbers, to the last bit. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  type CostModel,
  gatedExpertCost,
  h200,
  type Placement,
  policies,
  predictStep,
  SliceManager,
  tileCost,
} from '../src/index.js'
import { Workload } from '../src/predict.js'
import { Ranker } from '../src/rank.js'
import { Ranking } from '../src/ranking.js'
import { h200Tiles } from './support/h200-tiles.js'

const cost = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
const models: readonly (CostModel | null)[] = [
  null,
  cost,
  { ...cost, overlap: 'slice' },
  { ...cost, exposed: 0.4, rowTile: 64, extraRows: 8 },
  { ...cost, overlap: 'slice', exposed: 0.4, contention: 0.3, walkUs: 20, stepUs: 9, perSliceUs: 2 },
  tileCost(h200Tiles),
]

/** Loads as they come: even, in small whole numbers with many equal ones, spread over octaves, none at all for some. */
const loads = fc.oneof(
  fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 2, maxLength: 300 }),
  fc.array(fc.integer({ min: 0, max: 2 ** 31 - 1 }), { minLength: 2, maxLength: 300 }),
  fc.array(
    fc.double({ min: -30, max: 30, noNaN: true }).map((x) => 2 ** x),
    { minLength: 2, maxLength: 300 },
  ),
  fc.array(fc.double({ min: 100, max: 101, noNaN: true }), { minLength: 2, maxLength: 300 }),
)
const some = loads.filter((load) => load.some((a) => a > 0))

function filled(load: readonly number[], model: CostModel | null): Workload {
  const work = new Workload()
  work.fill(load, load.length, model, 132, 3)
  return work
}

describe('a ranking', () => {
  test('is by load, to 1 part in 2^30 of the largest, and then by number', () => {
    const ranker = new Ranker()
    fc.assert(
      fc.property(some, (load) => {
        ranker.rank(filled(load, null))
        const largest = Math.max(...load)
        const key = (e: number) => Math.floor((largest - (load[e] ?? 0)) * (2 ** 30 / largest))
        const plain = load.map((_, e) => e).sort((a, b) => key(a) - key(b) || a - b)
        expect([...ranker.order.subarray(0, load.length)]).toEqual(plain)
      }),
      { numRuns: 400 },
    )
  })

  test('of loads below nothing still has every expert once, those last', () => {
    const ranker = new Ranker()
    ranker.rank(filled([...new Array<number>(40).fill(7), -3], null))
    expect([...ranker.order.subarray(0, 41)]).toEqual(Array.from({ length: 41 }, (_, e) => e))
  })
})

/** Cuts by bisection alone: every limit is tried from the first expert on, one expert after the other. */
function plainCuts(load: readonly number[], model: CostModel | null, sms: readonly number[]): number[] {
  const work = filled(load, model)
  const ranker = new Ranker()
  ranker.rank(work)
  const experts = load.length
  const sums = [[0, 0, 0]]
  for (let i = 0; i < experts; i++) {
    const e = ranker.order[i] ?? 0
    const [b = 0, f = 0, o = 0] = sums[i] ?? []
    if (model === null) sums.push([0, f + (load[e] ?? 0), 0])
    else sums.push([b + (work.bytes[e] ?? 0), f + (work.flops[e] ?? 0), o + (work.overheadUs[e] ?? 0)])
  }
  const part = (of: number, from: number, to: number) => (sums[to]?.[of] ?? 0) - (sums[from]?.[of] ?? 0)
  const exposed = model?.exposed ?? 0
  const time = (from: number, to: number, n: number): number => {
    const { perByte, perFlop } = work.speed(n)
    if (model?.overlap === 'slice') {
      const memory = part(0, from, to) * perByte
      const arithmetic = part(1, from, to) * perFlop
      return Math.max(memory, arithmetic) + exposed * Math.min(memory, arithmetic) + part(2, from, to)
    }
    let boundary = 0
    if (model === null) boundary = experts
    else {
      let high = experts
      while (boundary < high) {
        const middle = (boundary + high) >> 1
        const e = ranker.order[middle] ?? 0
        if ((work.bytes[e] ?? 0) * perByte > (work.flops[e] ?? 0) * perFlop) high = middle
        else boundary = middle + 1
      }
    }
    const split = Math.min(to, Math.max(from, boundary))
    const longer = part(1, from, split) * perFlop + part(0, split, to) * perByte + part(2, from, to)
    return exposed === 0 ? longer : longer + exposed * (part(0, from, split) * perByte + part(1, split, to) * perFlop)
  }
  const within = (limit: number): number[] | null => {
    const cuts = [0]
    for (const [s, n] of sms.entries()) {
      const from = cuts[s] ?? 0
      let to = s === sms.length - 1 ? experts : from + 1
      if (time(from, to, n) > limit) return null
      while (to < experts - (sms.length - 1 - s) && time(from, to + 1, n) <= limit) to++
      cuts.push(to)
    }
    return cuts
  }
  const alone = sms.map((n) => time(0, experts, n))
  let high = Math.max(...alone)
  let low = 1 / alone.reduce((sum, us) => sum + 1 / us, 0)
  while (low > 0 && within(low) !== null) {
    high = low
    low *= 0.9
  }
  for (let stride = 1.02; low * stride < high; stride = 1 + (stride - 1) * 3) {
    if (within(low * stride) === null) continue
    high = low * stride
    break
  }
  for (let i = 0; i < 12 && high - low > 5e-4 * high; i++) {
    const middle = (low + high) / 2
    if (within(middle) !== null) high = middle
    else low = middle
  }
  return within(high) ?? []
}

test('cuts are those of a plain bisection, whatever was cut before', () => {
  const ranking = new Ranking()
  const sizes = fc.array(fc.integer({ min: 1, max: 16 }), { minLength: 2, maxLength: 5 })
  fc.assert(
    fc.property(some, sizes, fc.constantFrom(...models), (load, portions, model) => {
      const sms = portions.slice(0, load.length).map((n) => 8 * n)
      ranking.rank(filled(load, model))
      expect(ranking.cuts(sms)).toEqual(plainCuts(load, model, sms))
    }),
    { numRuns: 500 },
  )
})

test('what a plan predicts is what its placement is predicted, whoever decided', () => {
  const adaptive = policies.adaptive()
  // Policies of one's own may change what a built-in one has decided, after it was predicted.
  const changed = {
    name: 'changed',
    decide: (snapshot: Parameters<typeof adaptive.decide>[0]) => {
      const made = adaptive.decide(snapshot)
      const sliceOf = made.sliceOf as number[]
      ;[sliceOf[0], sliceOf[1]] = [sliceOf[1] ?? 0, sliceOf[0] ?? 0]
      return made
    },
  }
  const model = models[4] ?? cost
  for (const policy of [adaptive, changed, policies.proportional(), policies.dynamic()]) {
    const manager = new SliceManager({ device: h200, numExperts: 24, policy, cost: model, dwellSteps: 2 })
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 4000 }), { minLength: 24, maxLength: 24 }),
        fc.integer({ min: 0, max: 40 }),
        fc.boolean(),
        (counts, steps, forecast) => {
          const experts = counts.map((count, expert) => ({ expert, count, temperature: 'warm' }))
          const trusted = { method: 'trend', counts: [...counts].reverse(), score: 0.5, horizonSteps: 8 }
          const profile = { numExperts: 24, steps, windowSteps: 16, experts, forecast: forecast ? trusted : null }
          const plan = manager.update(profile as unknown as Parameters<typeof manager.update>[0])
          const placement: Placement = { sms: plan.slices.map((slice) => slice.requestedSms), sliceOf: plan.sliceOf }
          const load = counts.map((count) => count / 16)
          expect(plan.predictedUs).toBe(predictStep(model, load, placement).stepUs)
          for (const [s, { experts }] of plan.slices.entries()) {
            expect(experts).toEqual(plan.sliceOf.flatMap((own, e) => (own === s ? [e] : [])))
          }
        },
      ),
      { numRuns: 100 },
    )
  }
})
