import { describe, expect, test } from 'vitest'
import { type AllocationPolicy, arrange, gatedExpertCost, h200, policies, predictStep } from '../src/index.js'
import { utilizationOf } from '../src/simulator/simulate.js'
import {
  compare,
  estimate,
  ratio,
  recordedTrace,
  simulate,
  simulateAll,
  syntheticTrace,
  type TraceKind,
  traceKinds,
} from '../src/simulator.js'

const cost = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
const sum = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0)

describe('synthetic traces', () => {
  test('are what the seed says, and nothing else', () => {
    for (const kind of traceKinds) {
      const trace = syntheticTrace({ kind, seed: 3, steps: 40, numExperts: 8 })
      expect(trace).toEqual(syntheticTrace({ kind, seed: 3, steps: 40, numExperts: 8 }))
      expect(trace.counts).not.toEqual(syntheticTrace({ kind, seed: 4, steps: 40, numExperts: 8 }).counts)
      expect(trace.counts).toHaveLength(40)
    }
  })
  test('have the assignments asked for in the mean', () => {
    for (const kind of traceKinds) {
      const { counts } = syntheticTrace({ kind, seed: 1, steps: 300, assignments: 5000 })
      expect(sum(counts.map(sum)) / 300 / 5000).toBeCloseTo(1, 1)
    }
  })
  test('move as they are called', () => {
    const shares = (kind: TraceKind) => {
      const { counts } = syntheticTrace({ kind, seed: 2, steps: 600, numExperts: 16, noise: 0 })
      return counts.map((step) => Array.from(step, (n) => n / sum(step)))
    }
    const distance = (a: readonly number[] = [], b: readonly number[] = []) =>
      sum(a.map((x, e) => Math.abs(x - (b[e] ?? 0)))) / 2
    const far = (kind: TraceKind) => {
      const all = shares(kind)
      return distance(all[0], all[590])
    }
    expect(far('stationary')).toBeLessThan(0.03)
    expect(far('gradual')).toBeGreaterThan(0.2)
    const crowd = shares('flash-crowd')
    const away = crowd.map((step) => distance(step, crowd[0]) > 0.15).filter(Boolean).length
    expect(away).toBeGreaterThan(0)
    expect(away).toBeLessThan(60)
  })
})

describe('a simulation', () => {
  test('adds up what the cost model says of each step', () => {
    const trace = recordedTrace(
      'by hand',
      Array.from({ length: 20 }, (_, t) => [1000 + t, 500, 20, 3]),
    )
    const result = simulate(policies.static(), trace, { warmupSteps: 4 })
    const load = [1001.5, 500, 20, 3]
    const laidOut = arrange(load, { sms: 132, granularity: 8, minSms: 8, slices: 3, dwellSteps: 16, switchUs: 3 }, cost)
    const expected = sum(trace.counts.slice(4).map((counts) => predictStep(cost, counts, laidOut).stepUs))
    expect(result.steps).toBe(16)
    expect(result.makespanUs).toBeCloseTo(expected, 6)
    expect(result).toMatchObject({ policy: 'static', trace: 'by hand', switches: 0, movedSms: 0, migrations: 0 })
    expect(result.regret).toBeCloseTo(expected / (result.oracleUs ?? 0) - 1, 9)
  })
  test('is the same for one policy alone and beside others', () => {
    const trace = syntheticTrace({ kind: 'gradual', seed: 5, steps: 400 })
    const both = simulateAll([policies.proportional(), policies.adaptive()], trace)
    expect(both[1]).toEqual(simulate(policies.adaptive(), trace))
  })
  test('charges for changes, and holds sizes for the dwell', () => {
    const trace = syntheticTrace({ kind: 'periodic', seed: 5, steps: 600 })
    const restless: AllocationPolicy = {
      name: 'restless',
      decide({ step, load }) {
        const hot = step % 16 === 0 ? 84 : 68
        return { sms: [hot, 132 - hot], sliceOf: load.map((_, e) => e % 2), reason: 'to and fro' }
      },
    }
    const options = { intervalSteps: 8, warmupSteps: 0, oracle: false, switchUs: 0 }
    const free = simulate(restless, trace, { ...options, dwellSteps: 8 })
    expect(free.switches).toBe(74)
    expect(free.movedSms).toBe(74 * 16)
    expect(simulate(restless, trace, { ...options, dwellSteps: 8, switchUs: 10 }).makespanUs).toBeCloseTo(
      free.makespanUs + 740,
      6,
    )
    expect(simulate(restless, trace, { ...options, dwellSteps: 40 }).switches).toBeLessThan(16)
  })
  test('charges for migrations when they have a price', () => {
    const trace = syntheticTrace({ kind: 'periodic', seed: 5, steps: 500 })
    const free = simulate(policies.proportional(), trace, { oracle: false })
    const priced = simulate(policies.proportional(), trace, { oracle: false, migrateUs: 2 })
    expect(free.migrations).toBeGreaterThan(0)
    expect(priced.makespanUs - free.makespanUs).toBeCloseTo(2 * free.migrations, 6)
  })
  test('refuses options that it does not know, and policies that decide nonsense', () => {
    const trace = syntheticTrace({ kind: 'stationary', seed: 1, steps: 300 })
    expect(() => simulate(policies.static(), trace, { warmUp: 3 } as object)).toThrow(/unknown option 'warmUp'/)
    const bad: AllocationPolicy = { name: 'bad', decide: () => ({ sms: [1], sliceOf: [], reason: 'no' }) }
    expect(() => simulate(bad, trace)).toThrow(/policy 'bad' decided what cannot be done/)
  })
})

describe('how busy slices were', () => {
  test('is the median over steps: odd ones do not count', () => {
    const steps = Array.from({ length: 20 }, (_, t) => (t % 7 === 3 ? [10, 900] : [100, 50 + (t % 2)]))
    const [hot, cold] = utilizationOf(steps) ?? []
    expect(hot).toBe(1)
    expect(cold).toBeCloseTo(0.51, 2)
  })
  test('is not known after too few steps, or when nothing was done', () => {
    expect(utilizationOf([])).toBeNull()
    expect(utilizationOf(new Array(7).fill([1, 2]))).toBeNull()
    expect(utilizationOf(new Array(20).fill([0, 0]))).toBeNull()
  })
})

describe('recorded traces', () => {
  test('are copied and checked', () => {
    const counts = [[1, 2], new Int32Array([3, 4])]
    const trace = recordedTrace('mine', counts)
    expect(trace).toMatchObject({ name: 'mine', numExperts: 2 })
    expect(() => recordedTrace('mine', [[1, 2], [3]])).toThrow(/counts\[1\]: expected 2 experts/)
    expect(() => recordedTrace('mine', [[1, -2]])).toThrow(/counts\[0\]\[1\]/)
    expect(() => recordedTrace('mine', [])).toThrow(RangeError)
  })
})

describe('comparisons', () => {
  test('are paired by seed, with confidence intervals', () => {
    expect(estimate([1, 2, 3])).toEqual({ mean: 2, halfWidth: expect.closeTo(4.303 / Math.sqrt(3), 9) })
    expect(estimate([5]).halfWidth).toBeNull()
    const rows = compare({
      policies: [policies.static(), policies.adaptive()],
      traces: ['gradual'],
      seeds: [1, 2, 3],
      trace: { steps: 400 },
    })
    const [fixed, adaptive] = rows
    if (!fixed || !adaptive) throw new Error('no rows')
    expect(rows.map(({ policy, trace }) => [policy, trace])).toEqual([
      ['static', 'gradual'],
      ['adaptive', 'gradual'],
    ])
    expect(ratio(fixed, fixed)).toEqual({ mean: 1, halfWidth: 0 })
    expect(fixed.regret.mean).toBeGreaterThan(adaptive.regret.mean)
  })
})
