// Measured windows to the profiler: the parts sum to what was measured, and a share follows the tokens as predicted.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ExpertProfiler } from '../../profiler/src/index.js'
import { EnergyFeed, type EnergyFeedOptions, expertLoads, type Measurement, meterSteps } from '../src/index.js'

const shape = { inputDim: 64, hiddenDim: 128 } as const
const numExperts = 4
const measured = (joules: number | null, activeJoules: number | null = null) => ({
  joules,
  activeJoules,
  reason: joules === null ? 'refused' : null,
})
const step = fc.record({
  counts: fc.array(fc.nat(300), { minLength: numExperts, maxLength: numExperts }),
  tokens: fc.option(fc.nat(500)),
  timeMs: fc.option(fc.double({ min: 0.01, max: 10, noNaN: true })),
})
const steps = fc.array(step, { minLength: 1, maxLength: 20 })

function setUp(options: Partial<EnergyFeedOptions> = {}) {
  const profiler = new ExpertProfiler({ numExperts, windowSteps: 64 })
  return { profiler, feed: new EnergyFeed({ profiler, shape, ...options }) }
}
const sum = (values: Iterable<number>) => [...values].reduce((a, b) => a + b, 0)

describe('a window', () => {
  it('is shared out among its steps and their experts: all parts sum to what was measured', () => {
    fc.assert(
      fc.property(steps, fc.double({ min: 0.1, max: 1000, noNaN: true }), (list, joules) => {
        fc.pre(list.some(({ counts }) => counts.some((n) => n > 0)))
        const { profiler, feed } = setUp({ mode: 'window' })
        for (const each of list) feed.record(each)
        expect(profiler.snapshot().steps).toBe(0)
        const window = feed.close(measured(joules))
        const { window: recorded } = profiler.toJSON()
        expect(recorded.map(({ counts }) => counts)).toEqual(list.map(({ counts }) => counts))
        expect(sum(recorded.map(({ energyJoules }) => energyJoules ?? Number.NaN)) / joules).toBeCloseTo(1, 9)
        for (const { energyJoules, expertEnergyJoules } of recorded) {
          expect(sum(expertEnergyJoules ?? [])).toBeCloseTo(energyJoules ?? -1, 9)
        }
        // By expert it is what `attribute` says of the window as a whole.
        for (const { expert, joules: own } of window.experts) {
          const parts = recorded.map(({ expertEnergyJoules }) => expertEnergyJoules?.[expert] ?? Number.NaN)
          expect(sum(parts) / joules).toBeCloseTo((own ?? Number.NaN) / joules, 9)
        }
        expect(window).toMatchObject({ steps: list.length, unmeteredSteps: 0, measuredJoules: joules })
      }),
    )
  })

  it("doubling an expert's tokens moves its share in the profiler as predicted", () => {
    // By hand, from the default prices: nothing of the implementation.
    const weights = 3 * 64 * 128
    const price = (n: number) => (n === 0 ? 0 : 2 * (weights + n * 128) * 1.16e-10 + 2 * n * weights * 9e-13)
    const shareOf = (counts: number[]) => {
      const { profiler, feed } = setUp({ mode: 'window' })
      for (let i = 0; i < 10; i++) feed.record({ counts })
      feed.close(measured(50))
      const { experts, meanStepJoules } = profiler.snapshot()
      expect(meanStepJoules).toBeCloseTo(5, 9)
      return (experts[1]?.meanEnergyJoules ?? Number.NaN) / 5
    }
    const others = price(100) + price(7)
    expect(shareOf([100, 40, 7, 0])).toBeCloseTo(price(40) / (others + price(40)), 9)
    expect(shareOf([100, 80, 7, 0])).toBeCloseTo(price(80) / (others + price(80)), 9)
  })

  it('reports what the model was off by before it was rescaled', () => {
    const { feed } = setUp({ joulesPerByte: 1e-5, joulesPerFlop: 0 })
    for (let i = 0; i < 2; i++) feed.record({ counts: [3, 0, 1, 0], tokens: 2 })
    const modelled = sum(expertLoads([6, 0, 2, 0], shape, [2, 0, 2, 0]).map(({ bytes }) => bytes * 1e-5))
    const window = feed.close(measured(10, 4))
    expect(window).toMatchObject({ basis: 'active', measuredJoules: 4, steps: 2, tokens: 4, tokensPerJoule: 0.4 })
    expect(window.residualJoules).toBeCloseTo(4 - modelled, 9)
    expect(window.residualShare).toBeCloseTo((4 - modelled) / 4, 9)
    expect(feed.scale).toBeCloseTo(4 / modelled, 9)
  })

  it('of unknown energy is recorded without one, with the reason', () => {
    const { profiler, feed } = setUp({ mode: 'window' })
    feed.record({ counts: [1, 2, 3, 4], tokens: 5 })
    const window = feed.close(measured(null))
    expect(window).toMatchObject({ reason: 'refused', measuredJoules: null, unmeteredSteps: 1, tokensPerJoule: null })
    expect(profiler.snapshot()).toMatchObject({ steps: 1, meanStepJoules: null })
    expect(feed.scale).toBeNull()
  })

  it('without steps, or without work, gives nothing to anybody', () => {
    const { feed } = setUp()
    expect(feed.close(measured(10))).toMatchObject({ steps: 0, unattributedJoules: 10, experts: [] })
    feed.record({ counts: [0, 0, 0, 0] })
    expect(feed.close(measured(10))).toMatchObject({ steps: 1, unattributedJoules: 10 })
    expect(feed.scale).toBeNull()
  })

  it('of more steps than may wait records the oldest without their energy, and says how many', () => {
    const { profiler, feed } = setUp({ mode: 'window', maxPendingSteps: 2 })
    for (let i = 1; i <= 5; i++) feed.record({ counts: [i, 0, 0, 0] })
    expect(profiler.snapshot().steps).toBe(3)
    expect(feed.close(measured(10))).toMatchObject({ steps: 5, unmeteredSteps: 3 })
    const { window } = profiler.toJSON()
    expect(window.map(({ counts }) => counts[0])).toEqual([1, 2, 3, 4, 5])
    expect(window.map(({ energyJoules }) => energyJoules === null)).toEqual([true, true, true, false, false])
  })
})

describe('live steps', () => {
  it('are recorded at once, with the energy of the last window that was known', () => {
    const { profiler, feed } = setUp()
    const counts = [10, 20, 30, 0]
    feed.record({ counts })
    expect(profiler.snapshot()).toMatchObject({ steps: 1, meanStepJoules: null })
    feed.record({ counts })
    expect(feed.close(measured(8))).toMatchObject({ unmeteredSteps: 2 })
    feed.record({ counts })
    // The same work as before: half of what two such steps took.
    expect(profiler.snapshot().meanStepJoules).toBeCloseTo(4, 9)
    feed.close(measured(null))
    feed.record({ counts })
    expect(profiler.snapshot().meanStepJoules).toBeCloseTo(4, 9)
    const { experts } = profiler.snapshot()
    expect(sum(experts.map(({ meanEnergyJoules }) => meanEnergyJoules ?? Number.NaN))).toBeCloseTo(4, 9)
  })

  it('have the times of experts, where a model of them is given, and they sum to the step', () => {
    const { profiler, feed } = setUp({ expertTimes: (counts) => Array.from(counts, (n) => 5 * n) })
    feed.record({ counts: [1, 3, 0, 0], timeMs: 8 })
    feed.record({ counts: [0, 0, 0, 0], timeMs: 2 })
    expect(profiler.toJSON().window.map(({ expertTimesMs }) => expertTimesMs)).toEqual([
      [2, 6, 0, 0],
      [0, 0, 0, 0],
    ])
  })
})

describe('meterSteps', () => {
  const monitor = (joules: number) => ({
    measure: async <T>(fn: () => T) => {
      const result = await fn()
      return { ...measured(joules), result } as unknown as Measurement & { readonly result: Awaited<T> }
    },
  })
  it('measures the work and shares it out among the steps that it recorded', async () => {
    const { profiler, feed } = setUp({ mode: 'window' })
    const window = await meterSteps(monitor(6), feed, () => {
      for (let i = 0; i < 3; i++) feed.record({ counts: [1, 1, 1, 1], tokens: 2 })
    })
    expect(window).toMatchObject({ steps: 3, tokens: 6, tokensPerJoule: 1, measurement: { joules: 6 } })
    expect(profiler.snapshot().meanStepJoules).toBeCloseTo(2, 9)
  })
  it('loses no step when the work fails', async () => {
    const { profiler, feed } = setUp({ mode: 'window' })
    const failing = meterSteps(monitor(6), feed, () => {
      feed.record({ counts: [1, 1, 1, 1] })
      throw new Error('oops')
    })
    await expect(failing).rejects.toThrow('oops')
    expect(profiler.snapshot()).toMatchObject({ steps: 1, meanStepJoules: null })
  })
})

it('what is wrong is refused by name, and changes nothing', () => {
  const { profiler, feed } = setUp()
  feed.record({ counts: [1, 2, 3, 4] })
  const before = profiler.toJSON()
  expect(() => feed.record({ counts: [1, 2, 3] })).toThrow(/step\.counts: expected 4 experts as before, got 3/)
  expect(() => feed.record({ counts: [1, 2, 3, -1] })).toThrow(/step\.counts\[3\]/)
  expect(() => feed.record({ counts: [1, 2, 3, 4], time: 1 } as never)).toThrow(/unknown option 'time'/)
  expect(profiler.toJSON()).toEqual(before)
  expect(feed.close(measured(1)).steps).toBe(1)
  const make = (change: object) => () => new EnergyFeed({ profiler, shape, ...change } as EnergyFeedOptions)
  expect(make({ profiler: {} })).toThrow(/options\.profiler: expected an ExpertProfiler, got an object/)
  expect(make({ shape: { inputDim: 1 } })).toThrow(/shape\.hiddenDim/)
  expect(make({ mode: 'later' })).toThrow(/options\.mode/)
  expect(make({ joulesPerByte: -1 })).toThrow(/joulesPerByte/)
  expect(make({ expertTimes: 1 })).toThrow(/options\.expertTimes: expected a function, got 1/)
  expect(make({ prices: 1 })).toThrow(/unknown option 'prices'/)
})
