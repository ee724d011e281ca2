// From samples to a window's energy: which source is used, and when there is none.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { integrate, measurementOf, type Observation } from '../src/measurement.js'
import type { Measured, PowerSample } from '../src/model.js'

const blank: PowerSample = {
  timeMs: 0,
  joules: null,
  memoryJoules: null,
  resets: 0,
  ticks: 0,
  watts: null,
  averageWatts: null,
  memoryWatts: null,
  gpuUtilisation: null,
  memoryUtilisation: null,
  smActivity: null,
  smOccupancy: null,
  tensorActivity: null,
  dramActivity: null,
  throttle: null,
}

/** A GPU at `watts` (a number, or by time in ms), looked at every 100 ms from -5 ms on, window [0, length]. */
function seenGpu(
  length: number,
  watts: number | ((t: number) => number),
  more: Partial<Observation> = {},
): Observation {
  const power = typeof watts === 'number' ? () => watts : watts
  const times: number[] = []
  for (let t = -5; t < length; t += 100) times.push(t)
  times.push(length + 5)
  let energy = 0
  const samples = times.map((timeMs, i): PowerSample => {
    const last = times[i - 1]
    if (last !== undefined) energy += ((power(last) + power(timeMs)) / 2) * ((timeMs - last) / 1000)
    return { ...blank, timeMs, joules: energy, ticks: i, watts: power(timeMs), averageWatts: power(timeMs) }
  })
  return {
    device: 'GPU-x',
    kind: 'gpu',
    intervalMs: 100,
    startMs: 0,
    endMs: length,
    before: samples[0] ?? 'none',
    after: samples.at(-1) ?? 'none',
    samples,
    unknown: {},
    idleWatts: 'no baseline',
    ...more,
  }
}
const change = (seen: Observation, f: (sample: PowerSample) => Partial<PowerSample>): Observation => {
  const samples = seen.samples.map((sample) => ({ ...sample, ...f(sample) }))
  return { ...seen, samples, before: samples[0] ?? 'none', after: samples.at(-1) ?? 'none' }
}

const figures: readonly Measured[] = [
  'joules',
  'meanWatts',
  'idleJoules',
  'activeJoules',
  'memoryJoules',
  'gpuUtilisation',
  'memoryUtilisation',
  'smActivity',
  'smOccupancy',
  'tensorActivity',
  'dramActivity',
  'throttle',
]

describe('the source of an energy', () => {
  it('is the counter for windows in which it moved ten times', () => {
    const m = measurementOf(seenGpu(5000, 300))
    expect(m).toMatchObject({ source: 'nvml-energy-counter', reason: null, power: null, ticks: 51 })
    expect(m.joules).toBeCloseTo(1500, 6)
    expect(m.meanWatts).toBeCloseTo(300, 6)
  })

  it('is the power for shorter windows', () => {
    const m = measurementOf(seenGpu(700, 300))
    expect(m).toMatchObject({ source: 'nvml-power-integral', power: 'instant', reason: null })
    expect(m.joules).toBeCloseTo(210, 6)
  })

  it('is none for windows shorter than three samples: null and not 0', () => {
    const m = measurementOf(seenGpu(150, 300))
    expect(m).toMatchObject({ joules: null, source: null, meanWatts: null, idleJoules: null })
    expect(m.reason).toBe(
      'the energy counter moved 2 times in 150 ms, fewer than 10; 1 power samples lie in the window of 150 ms, fewer than 3',
    )
  })

  it('is the power where the counter was reset or cannot be read', () => {
    const reset = change(seenGpu(5000, 300), ({ timeMs }) => ({ resets: timeMs > 2000 ? 1 : 0 }))
    expect(measurementOf(reset)).toMatchObject({ source: 'nvml-power-integral' })
    const refused = change(seenGpu(5000, 300), () => ({ joules: null }))
    expect(measurementOf(refused)).toMatchObject({ source: 'nvml-power-integral', ticks: null })
    const neither = change(refused, () => ({ watts: null, averageWatts: null }))
    const unknown = { joules: 'Insufficient Permissions (4)', watts: 'refused (4)' }
    expect(measurementOf({ ...neither, unknown }).reason).toBe('Insufficient Permissions (4); refused (4)')
  })

  it("is the driver's average power only for windows that are long against its 1 s", () => {
    const average = (length: number): Observation => change(seenGpu(length, 300), () => ({ joules: null, watts: null }))
    expect(measurementOf(average(4000))).toMatchObject({ source: 'nvml-power-integral', power: 'average' })
    expect(measurementOf(average(2000))).toMatchObject({ joules: null, source: null })
  })

  it('is none where a sample is missing at an end', () => {
    const hang = 'NVML hangs: nvmlX has not returned for 2000 ms'
    expect(measurementOf(seenGpu(5000, 300, { after: hang }))).toMatchObject({ joules: null, reason: hang })
    expect(measurementOf(seenGpu(5000, 300, { before: hang }))).toMatchObject({ joules: null, reason: hang })
  })

  it('for the CPU is RAPL, unless its readings lie far outside of the window', () => {
    const cpu = (length: number, slackMs: number): Observation => ({
      ...seenGpu(length, 100, { kind: 'cpu', device: 'cpu' }),
      before: { ...blank, timeMs: -slackMs, joules: 10, memoryJoules: 1 },
      after: { ...blank, timeMs: length, joules: 15, memoryJoules: 2, ticks: 2 },
    })
    expect(measurementOf(cpu(50, 0.1))).toMatchObject({ source: 'rapl', reason: null })
    expect(measurementOf(cpu(50, 0)).joules).toBeCloseTo(5, 9)
    expect(measurementOf(cpu(50, 0)).memoryJoules).toBeCloseTo(1, 9)
    expect(measurementOf(cpu(10, 0)).reason).toMatch(/window of 10 ms is shorter than 20 ms/)
    expect(measurementOf(cpu(50, 20)).reason).toMatch(/too long for the window/)
  })
})

describe('every null has its reason, and only a null', () => {
  it.each([
    ['a full window', seenGpu(5000, 300, { idleWatts: 100 })],
    ['a short one', seenGpu(50, 300)],
    ['an empty one', seenGpu(0, 300)],
    ['no samples', seenGpu(5000, 300, { before: 'a', after: 'b', samples: [] })],
    ['a CPU', seenGpu(5000, 300, { kind: 'cpu' })],
    ['a reset', change(seenGpu(500, 300), ({ timeMs }) => ({ resets: timeMs > 200 ? 1 : 0, watts: null }))],
  ])('%s', (_, seen) => {
    const m = measurementOf(seen)
    for (const figure of figures) {
      if (m[figure] === null) expect(m.reasons[figure], figure).toMatch(/\w/)
      else expect(m.reasons, figure).not.toHaveProperty(figure)
    }
    expect(m.reason).toBe(m.reasons.joules ?? null)
    expect(JSON.parse(JSON.stringify(m))).toEqual(m)
  })
})

describe('idle energy', () => {
  it('is the baseline over the window, and the two parts sum to the whole', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1500, max: 20_000 }),
        fc.double({ min: 1, max: 700, noNaN: true }),
        (length, idle) => {
          const m = measurementOf(seenGpu(length, 300, { idleWatts: idle }))
          const [joules, idleJoules, activeJoules] = [m.joules ?? Number.NaN, m.idleJoules ?? -1, m.activeJoules ?? -1]
          expect(idleJoules).toBeCloseTo(Math.min((idle * length) / 1000, joules), 6)
          expect(idleJoules + activeJoules).toBeCloseTo(joules, 9)
          expect(activeJoules).toBeGreaterThanOrEqual(0)
        },
      ),
    )
  })
})

describe('power integrals', () => {
  it('are exact for power that changes linearly, wherever the window lies between samples', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 300, max: 5000 }),
        fc.double({ min: -0.05, max: 0.05, noNaN: true }),
        fc.double({ min: 300, max: 700, noNaN: true }),
        (length, slope, level) => {
          const integral = integrate(
            seenGpu(length, (t) => level + slope * t),
            'watts',
          )
          expect(integral).toBeCloseTo((level * length + (slope * length * length) / 2) / 1000, 6)
        },
      ),
    )
  })

  it('are refused over a hole, and where samples begin late or end early', () => {
    const seen = seenGpu(3000, 300)
    const without = (from: number, to: number): Observation => ({
      ...seen,
      samples: seen.samples.filter(({ timeMs }) => timeMs < from || timeMs > to),
    })
    expect(integrate(without(1000, 1500), 'watts')).toMatch(/no power samples for 600 ms/)
    expect(integrate(without(-10, 500), 'watts')).toMatch(/begin 595 ms after/)
    expect(integrate(without(2500, 4000), 'watts')).toMatch(/end 505 ms before/)
    expect(integrate(without(1000, 1200), 'watts')).toBeCloseTo(900, 6)
  })
})

describe('means', () => {
  it('are taken over the samples within the window, and reasons of throttling by their share', () => {
    const seen = change(seenGpu(1000, 300), ({ timeMs }) => ({
      smActivity: timeMs < 0 || timeMs > 1000 ? 1 : 0.25,
      throttle: timeMs < 450 ? ['sw-power-cap'] : [],
    }))
    const m = measurementOf(seen)
    expect(m.samples).toBe(10)
    expect(m.smActivity).toBeCloseTo(0.25, 12)
    expect(m.throttle?.['sw-power-cap']).toBeCloseTo(0.4, 12)
  })
})
