import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ExpertProfiler, type Forecast, ModelProfiler, type ModelProfilerState } from '../src/index.js'
import { Folding, findPeriod } from '../src/period.js'

/** A repeatable stream of numbers in [0, 1). */
function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

function run(counts: (step: number) => number[], steps: number, options: object = {}): ExpertProfiler {
  const profiler = new ExpertProfiler({ numExperts: counts(0).length, ...options })
  for (let t = 0; t < steps; t++) profiler.record({ counts: counts(t).map((x) => Math.max(0, Math.round(x))) })
  return profiler
}
const forecastOf = (profiler: ExpertProfiler): Forecast => {
  const { forecast } = profiler.snapshot()
  if (forecast === null) throw new Error('no forecast')
  return forecast
}

describe('forecasts are chosen by rolling backtest', () => {
  test('null before the first full horizon, then the last window', () => {
    const profiler = new ExpertProfiler({ numExperts: 2, horizonSteps: 4 })
    for (let t = 0; t < 3; t++) profiler.record({ counts: [8, 2] })
    expect(profiler.snapshot().forecast).toBeNull()
    profiler.record({ counts: [8, 2] })
    expect(profiler.snapshot().forecast).toEqual({
      method: 'last',
      horizonSteps: 4,
      counts: [8, 2],
      score: null,
      scores: { last: null, ewma: null, trend: null, periodic: null },
      backtests: 0,
      periodSteps: null,
    })
  })

  test('a steady noisy load: the last window is not beaten', () => {
    const next = random(5)
    const profiler = run(() => [400, 300, 200, 100].map((m) => m * (0.7 + 0.6 * next())), 1024)
    const forecast = forecastOf(profiler)
    expect(forecast.method).toBe('last')
    expect(forecast.score).toBe(1)
    expect(forecast.scores.trend).toBeGreaterThan(1)
    for (const [e, mean] of [400, 300, 200, 100].entries()) {
      expect(forecast.counts[e]).toBeGreaterThan(0.9 * mean)
      expect(forecast.counts[e]).toBeLessThan(1.1 * mean)
    }
  })

  test('a straight line: the trend, which is then exact', () => {
    const forecast = forecastOf(run((t) => [1000 + 4 * t, 5000 - 4 * t], 400))
    expect(forecast.method).toBe('trend')
    expect(forecast.score).toBeLessThan(0.01)
    // Steps 400 to 407: the middle is 403.5.
    expect(forecast.counts[0]).toBeCloseTo(1000 + 4 * 403.5, 6)
    expect(forecast.counts[1]).toBeCloseTo(5000 - 4 * 403.5, 6)
  })

  test('a jump a while ago: the exponential average has caught up, the window has not', () => {
    const next = random(9)
    const level = (t: number) => (Math.floor(t / 100) % 2 === 0 ? 900 : 100)
    const at = (t: number) => [level(t), 1000 - level(t)].map((x) => x * (0.9 + 0.2 * next()))
    const forecast = forecastOf(run(at, 470, { windowSteps: 128, halfLifeSteps: 4, historySteps: 64 }))
    expect(forecast.scores.ewma).toBeLessThan(0.7)
  })

  test('a period: found, used, and better than the last window', () => {
    const next = random(7)
    const wave = (t: number, phase: number) => 500 * (1 + 0.8 * Math.sin((2 * Math.PI * t) / 150 + phase))
    const at = (t: number) => [0, 1, 2, 3, 4, 5].map((e) => wave(t, e) * (0.8 + 0.4 * next()))
    const forecast = forecastOf(run(at, 1000))
    expect(forecast.method).toBe('periodic')
    expect(forecast.periodSteps).toBeGreaterThan(145)
    expect(forecast.periodSteps).toBeLessThan(155)
    expect(forecast.score).toBeLessThan(0.3)
    for (const [e, count] of forecast.counts.entries())
      expect(Math.abs(count - wave(1003.5, e))).toBeLessThan(0.15 * 500)
  })

  test('is finite, never negative, and never from a method that the last window beats by the margin', () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.nat(300), { minLength: 3, maxLength: 3 }), { minLength: 4, maxLength: 120 }),
        fc.integer({ min: 1, max: 6 }),
        (steps, horizonSteps) => {
          const profiler = new ExpertProfiler({ numExperts: 3, horizonSteps, windowSteps: 16 })
          for (const counts of steps) profiler.record({ counts })
          const { forecast } = profiler.snapshot()
          if (forecast === null) {
            expect(steps.length).toBeLessThan(horizonSteps)
            return
          }
          for (const count of forecast.counts) {
            expect(Number.isFinite(count)).toBe(true)
            expect(count).toBeGreaterThanOrEqual(0)
          }
          expect(forecast.score).toBe(forecast.scores[forecast.method])
          if (forecast.method !== 'last') expect(forecast.score).toBeLessThanOrEqual(1 / 0.97)
        },
      ),
    )
  })

  test('a load of nothing is forecast as nothing', () => {
    const forecast = forecastOf(run(() => [0, 0, 0], 200))
    expect(forecast).toMatchObject({ method: 'last', counts: [0, 0, 0], periodSteps: null })
  })
})

describe('the period of a series', () => {
  const bins = (length: number, value: (t: number, e: number) => number, experts = 40) =>
    Array.from({ length }, (_, t) => Float64Array.from({ length: experts }, (_, e) => value(t, e)))
  const fold = (series: readonly Float64Array[]) => {
    const folding = new Folding(40)
    return series.map((bin) => folding.fold(bin))
  }
  test('is found to a fraction of a bin, whatever its phases', () => {
    fc.assert(
      fc.property(fc.double({ min: 6, max: 40, noNaN: true }), fc.nat(1000), (period, seed) => {
        const next = random(seed)
        const phases = Array.from({ length: 40 }, () => 6.28 * next())
        const series = bins(128, (t, e) => 100 + 50 * Math.sin((2 * Math.PI * t) / period + (phases[e] ?? 0)))
        expect(Math.abs((findPeriod(fold(series)) ?? 0) - period)).toBeLessThan(0.5)
      }),
      { numRuns: 50 },
    )
  })
  test('is null for a constant, for noise, and for a slow drift', () => {
    const next = random(3)
    expect(
      findPeriod(
        bins(128, (_, e) => 10 + e),
        40,
      ),
    ).toBeNull()
    expect(
      findPeriod(
        bins(128, () => next()),
        40,
      ),
    ).toBeNull()
    expect(
      findPeriod(
        bins(128, (t, e) => (e % 2 === 0 ? t : 128 - t)),
        40,
      ),
    ).toBeNull()
    expect(findPeriod([])).toBeNull()
  })
})

describe('times and energies of experts', () => {
  test('are means over the steps that said, and null when none did', () => {
    const profiler = new ExpertProfiler({ numExperts: 2, windowSteps: 3 })
    profiler.record({ counts: [1, 1] })
    expect(profiler.snapshot().experts[0]).toMatchObject({ meanTimeMs: null, meanEnergyJoules: null })
    profiler.record({ counts: [1, 1], expertTimesMs: [2, 4], expertEnergyJoules: [1, 0], energyJoules: 3 })
    profiler.record({ counts: [1, 1], expertTimesMs: new Float32Array([4, 0]), energyJoules: 5 })
    const snapshot = profiler.snapshot()
    expect(snapshot.experts.map((e) => e.meanTimeMs)).toEqual([3, 2])
    expect(snapshot.experts.map((e) => e.meanEnergyJoules)).toEqual([1, 0])
    expect(snapshot.meanStepJoules).toBe(4)
  })
  test('are refused by name when they are wrong', () => {
    const profiler = new ExpertProfiler({ numExperts: 2 })
    const record = (value: object) => () => profiler.record({ counts: [1, 1], ...value })
    expect(record({ expertTimesMs: [1] })).toThrow(/step\.expertTimesMs: expected 2 numbers, got 1/)
    expect(record({ expertEnergyJoules: [1, -1] })).toThrow(/step\.expertEnergyJoules\[1\]/)
    expect(record({ energyJoules: Number.NaN })).toThrow(/step\.energyJoules/)
  })
})

describe('a forecaster is part of what is saved', () => {
  test('a restored profiler forecasts the same, now and later', () => {
    fc.assert(
      fc.property(fc.nat(300), fc.nat(60), fc.nat(1000), (before, after, seed) => {
        const next = random(seed)
        const step = (t: number) => ({
          counts: [0, 1, 2].map((e) => Math.round(50 + 40 * Math.sin(t / 6 + e) + 10 * next())),
          expertTimesMs: [next(), next(), next()],
        })
        const original = new ExpertProfiler({ numExperts: 3, horizonSteps: 2, windowSteps: 8 })
        for (let t = 0; t < before; t++) original.record(step(t))
        const restored = ExpertProfiler.restore(JSON.parse(JSON.stringify(original)))
        expect(restored.snapshot()).toEqual(original.snapshot())
        for (let t = before; t < before + after; t++) {
          const one = step(t)
          original.record(one)
          restored.record(one)
        }
        expect(restored.toJSON()).toEqual(original.toJSON())
      }),
      { numRuns: 40 },
    )
  })
  test('and refused by name when it does not fit', () => {
    const state = run((t) => [t, 5], 40).toJSON()
    const bad = (change: object) => () =>
      ExpertProfiler.restore({ ...state, forecaster: { ...state.forecaster, ...change } })
    expect(bad({ bins: [[1]] })).toThrow(/state\.forecaster\.bins\[0\]: expected 2 numbers, got 1/)
    expect(bad({ chosen: 'oracle' })).toThrow(/state\.forecaster\.chosen: expected one of last, ewma, trend, periodic/)
    expect(bad({ partialSteps: 8 })).toThrow(/state\.forecaster\.partialSteps/)
    expect(bad({ surprise: 1 })).toThrow(/unknown key 'surprise'/)
  })
})

describe('a profiler for each layer', () => {
  test('keeps layers apart, in order, and continues after a restore', () => {
    const model = new ModelProfiler({ numExperts: 2, minAssignments: 1 })
    model.record(7, { counts: [9, 1] })
    model.record(2, { counts: [1, 9] })
    expect([...model.snapshot()].map(([layer, { experts }]) => [layer, ...experts.map((e) => e.count)])).toEqual([
      [2, 1, 9],
      [7, 9, 1],
    ])
    const restored = ModelProfiler.restore(JSON.parse(JSON.stringify(model)) as ModelProfilerState)
    for (const one of [model, restored]) one.record(7, { counts: [0, 4] })
    expect(restored.snapshot()).toEqual(model.snapshot())
  })
  test('refuses what is not a layer, or is there twice', () => {
    const model = new ModelProfiler({ numExperts: 2 })
    expect(() => model.layer(-1)).toThrow(/layer: expected an integer from 0 to 65535, got -1/)
    model.record(1, { counts: [1, 1] })
    const state = model.toJSON()
    expect(() => ModelProfiler.restore({ ...state, layers: [...state.layers, ...state.layers] })).toThrow(
      /state\.layers\[1\]\.layer: 1 is there twice/,
    )
    expect(() => ModelProfiler.restore({ ...state, options: { ...state.options, numExperts: 3 } })).toThrow(
      /numExperts: expected 3, got 2/,
    )
  })
})
