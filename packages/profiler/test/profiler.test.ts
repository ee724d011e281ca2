import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ExpertProfiler, type ProfilerState, totalVariation } from '../src/index.js'

const experts = 5
const step = fc.record({
  counts: fc.array(fc.nat(500), { minLength: experts, maxLength: experts }),
  tokens: fc.option(fc.nat(1000)),
  timeMs: fc.option(fc.double({ min: 0, max: 1e3, noNaN: true })),
})
const steps = fc.array(step, { maxLength: 40 })
const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0)

describe('the rolling window', () => {
  test('holds exactly the last steps (against a direct sum)', () => {
    fc.assert(
      fc.property(steps, fc.integer({ min: 2, max: 12 }), (all, windowSteps) => {
        const profiler = new ExpertProfiler({ numExperts: experts, windowSteps })
        for (const one of all) profiler.record(one)
        const last = all.slice(-windowSteps)
        const expected = Array.from({ length: experts }, (_, e) => sum(last.map((one) => one.counts[e] ?? 0)))
        const snapshot = profiler.snapshot()
        expect(snapshot.experts.map((e) => e.count)).toEqual(expected)
        expect(snapshot.experts.map((e) => e.totalCount)).toEqual(
          Array.from({ length: experts }, (_, e) => sum(all.map((one) => one.counts[e] ?? 0))),
        )
        expect(snapshot.steps).toBe(all.length)
        expect(snapshot.windowSteps).toBe(last.length)
        expect(snapshot.assignments).toBe(sum(expected))
        if (snapshot.assignments > 0) expect(sum(snapshot.experts.map((e) => e.share))).toBeCloseTo(1, 12)
        expect(snapshot.tokens).toBe(
          last.some((one) => one.tokens === null) ? null : sum(last.map((one) => one.tokens ?? 0)),
        )
        const times = last.flatMap((one) => (one.timeMs === null ? [] : [one.timeMs]))
        if (times.length === 0) expect(snapshot.meanStepMs).toBeNull()
        else expect(snapshot.meanStepMs).toBeCloseTo(sum(times) / times.length, 9)
      }),
    )
  })
  test('copies what it is given, and hands out copies', () => {
    const profiler = new ExpertProfiler({ numExperts: 2 })
    const counts = new Int32Array([3, 1])
    profiler.record({ counts })
    counts.fill(100)
    const before = profiler.snapshot()
    profiler.record({ counts: [0, 4] })
    expect(before.experts.map((e) => e.count)).toEqual([3, 1])
    expect(profiler.snapshot().experts.map((e) => e.count)).toEqual([3, 5])
  })
})

describe('exponential averages', () => {
  test('of a constant load are that load from the first step on', () => {
    const profiler = new ExpertProfiler({ numExperts: 2, halfLifeSteps: 3 })
    for (let i = 0; i < 10; i++) {
      profiler.record({ counts: [12, 4] })
      const [a, b] = profiler.snapshot().experts
      expect(a?.averageCount).toBeCloseTo(12, 9)
      expect(b?.averageCount).toBeCloseTo(4, 9)
    }
  })
  test('follow the formula', () => {
    fc.assert(
      fc.property(
        fc.array(step, { minLength: 1, maxLength: 30 }),
        fc.double({ min: 0.5, max: 30, noNaN: true }),
        (all, h) => {
          const profiler = new ExpertProfiler({ numExperts: experts, halfLifeSteps: h })
          for (const one of all) profiler.record(one)
          const weights = all.map((_, i) => 2 ** (-(all.length - 1 - i) / h))
          for (const load of profiler.snapshot().experts) {
            const expected = sum(all.map((one, i) => (one.counts[load.expert] ?? 0) * (weights[i] ?? 0))) / sum(weights)
            expect(load.averageCount).toBeCloseTo(expected, 6)
          }
        },
      ),
    )
  })
  test('a half-life later, an old load has half its weight', () => {
    const profiler = new ExpertProfiler({ numExperts: 1, halfLifeSteps: 4 })
    for (let i = 0; i < 400; i++) profiler.record({ counts: [100] })
    for (let i = 0; i < 4; i++) profiler.record({ counts: [0] })
    expect(profiler.snapshot().experts[0]?.averageCount).toBeCloseTo(50, 6)
  })
})

describe('drift', () => {
  test('is 0 for a steady load, 1 for one that has moved, null with too little to compare', () => {
    const profiler = new ExpertProfiler({ numExperts: 2, windowSteps: 4 })
    expect(profiler.snapshot().drift).toBeNull()
    profiler.record({ counts: [8, 0] })
    expect(profiler.snapshot().drift).toBeNull()
    profiler.record({ counts: [2, 0] })
    expect(profiler.snapshot().drift).toBe(0)
    profiler.record({ counts: [0, 5] })
    profiler.record({ counts: [0, 5] })
    expect(profiler.snapshot().drift).toBe(1)
  })
  test('is the distance between the halves of the window', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 6, maxLength: 30 }), (all) => {
        const profiler = new ExpertProfiler({ numExperts: experts, windowSteps: 6 })
        for (const one of all) profiler.record(one)
        const half = (from: number, to?: number) =>
          Array.from({ length: experts }, (_, e) => sum(all.slice(from, to).map((one) => one.counts[e] ?? 0)))
        expect(profiler.snapshot().drift).toBe(totalVariation(half(-6, -3), half(-3)))
      }),
    )
  })
})

describe('toJSON and restore', () => {
  test('a restored profiler continues exactly like the original', () => {
    fc.assert(
      fc.property(steps, steps, fc.integer({ min: 2, max: 8 }), (before, after, windowSteps) => {
        const original = new ExpertProfiler({ numExperts: experts, windowSteps, minAssignments: 1 })
        for (const one of before) original.record(one)
        const restored = ExpertProfiler.restore(JSON.parse(JSON.stringify(original)) as ProfilerState)
        expect(restored.snapshot()).toEqual(original.snapshot())
        for (const one of after) {
          original.record(one)
          restored.record(one)
        }
        expect(restored.snapshot()).toEqual(original.snapshot())
        expect(restored.toJSON()).toEqual(original.toJSON())
      }),
    )
  })
  test('refuses a state that does not fit together, by name', () => {
    const profiler = new ExpertProfiler({ numExperts: 2 })
    profiler.record({ counts: [1, 2] })
    const state = profiler.toJSON()
    const bad = (change: Record<string, unknown>) => () =>
      ExpertProfiler.restore({ ...state, ...change } as ProfilerState)
    expect(bad({ format: 'x' })).toThrow(/state\.format: expected "nexus-profiler\/2", got "x"/)
    expect(bad({ extra: 1 })).toThrow(/unknown key 'extra'/)
    expect(bad({ steps: 2 })).toThrow(/state\.window: expected 2 steps, got 1/)
    expect(bad({ window: [{ counts: [1, -2], tokens: null, timeMs: null }] })).toThrow(
      /state\.window\[0\]\.counts\[1\]/,
    )
    expect(bad({ averages: [1] })).toThrow(/state\.averages: expected 2 numbers, got 1/)
    expect(bad({ totals: [1, 0.5] })).toThrow(/state\.totals\[1\]/)
    expect(bad({ temperatures: ['hot', 'mild'] })).toThrow(/state\.temperatures\[1\].*"mild"/)
    expect(bad({ options: { numExperts: 3 } })).toThrow(RangeError)
  })
})

test('reset forgets the steps and keeps the options', () => {
  const options = { numExperts: 3, windowSteps: 5, minAssignments: 1 }
  const profiler = new ExpertProfiler(options)
  for (let i = 0; i < 9; i++) profiler.record({ counts: [i, 1, 2], tokens: 1, timeMs: 1 })
  profiler.reset()
  expect(profiler.toJSON()).toEqual(new ExpertProfiler(options).toJSON())
})

test('an empty profiler has nothing to say', () => {
  expect(new ExpertProfiler({ numExperts: 2 }).snapshot()).toMatchObject({
    steps: 0,
    windowSteps: 0,
    assignments: 0,
    tokens: 0,
    meanStepMs: null,
    meanStepJoules: null,
    forecast: null,
    loadImbalance: null,
    normalizedEntropy: null,
    drift: null,
  })
})

describe('bad input is refused by name, and changes nothing', () => {
  const make = (options: unknown) => () => new ExpertProfiler(options as { numExperts: number })
  test('options', () => {
    expect(make(undefined)).toThrow(/options: expected an object, got undefined/)
    expect(make({})).toThrow(/options\.numExperts: expected an integer, got undefined/)
    expect(make({ numExperts: 0 })).toThrow(/options\.numExperts: expected an integer from 1 to 65536, got 0/)
    expect(make({ numExperts: 2, windowStep: 3 })).toThrow(/unknown key 'windowStep'/)
    expect(make({ numExperts: 2, windowSteps: 1 })).toThrow(/options\.windowSteps/)
    expect(make({ numExperts: 2, halfLifeSteps: 0 })).toThrow(
      /options\.halfLifeSteps: expected a number in \(0, finite\], got 0/,
    )
    expect(make({ numExperts: 2, hotShare: 1 })).toThrow(/options\.hotShare/)
    expect(make({ numExperts: 2, hotShare: 0.8, coldShare: 0.3 })).toThrow(/options\.coldShare/)
    expect(make({ numExperts: 2, contrast: 0.5 })).toThrow(/options\.contrast/)
    expect(make({ numExperts: 2, hysteresis: 0.5 })).toThrow(/options\.hysteresis/)
    expect(make({ numExperts: 2, minAssignments: 0 })).toThrow(/options\.minAssignments/)
  })
  test('steps', () => {
    const profiler = new ExpertProfiler({ numExperts: 2 })
    const record = (value: unknown) => () => profiler.record(value as { counts: number[] })
    const before = profiler.toJSON()
    expect(record([1, 2])).toThrow(/step: expected an object, got an array of 2/)
    expect(record({ counts: 'ab' })).toThrow(/step\.counts: expected an array of 2 numbers, got "ab"/)
    expect(record({ counts: [1] })).toThrow(/step\.counts: expected 2 numbers, got 1/)
    expect(record({ counts: [1, -1] })).toThrow(/step\.counts\[1\]: expected an integer from 0 to 2147483647, got -1/)
    expect(record({ counts: [1, Number.NaN] })).toThrow(/step\.counts\[1\]/)
    expect(record({ counts: ['1', 2] })).toThrow(TypeError)
    expect(record({ counts: [1, 2], tokens: 1.5 })).toThrow(/step\.tokens/)
    expect(record({ counts: [1, 2], timeMs: -1 })).toThrow(/step\.timeMs/)
    expect(record({ counts: [1, 2], time: 1 })).toThrow(/unknown key 'time'/)
    expect(profiler.toJSON()).toEqual(before)
  })
})
