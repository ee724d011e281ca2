// A monitor on a tree of RAPL counters.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { EnergyMonitor } from '../src/index.js'
import { fakeRapl, sleep, until } from './support/fakes.js'

const cpu = (intervalMs = 1000): EnergyMonitor => new EnergyMonitor({ device: 'cpu', intervalMs })

describe('RAPL', () => {
  it('sums packages and memory, and leaves out what they hold', async () => {
    const rapl = fakeRapl()
    rapl.add('intel-rapl:0', 'package-0', 1_000_000, 1e9)
    rapl.add('intel-rapl:0:0', 'core', 5, 1e9)
    rapl.add('intel-rapl:0:1', 'dram', 10, 1e9)
    rapl.add('intel-rapl:1', 'package-1', 0, 1e9)
    using m = cpu()
    const seen = await m.measure(async () => {
      await sleep(60)
      rapl.set('intel-rapl:0', 4_000_000)
      rapl.set('intel-rapl:0:0', 900_000)
      rapl.set('intel-rapl:0:1', 500_010)
      rapl.set('intel-rapl:1', 2_000_000)
    })
    expect(seen).toMatchObject({ device: 'cpu', source: 'rapl', reason: null })
    // Scaled from the readings to the window, which lies within them.
    expect(seen.joules).toBeCloseTo(5.5, 0)
    expect((seen.memoryJoules ?? 0) / (seen.joules ?? 1)).toBeCloseTo(0.5 / 5.5, 9)
    expect(seen.reasons.gpuUtilisation).toMatch(/not measured on the CPU/)
  })

  it('undoes any wraps at max_energy_range_uj', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1_000_000, max: 50_000_000 }),
        fc.array(fc.double({ min: 0.01, max: 0.99, noNaN: true }), { minLength: 3, maxLength: 12 }),
        async (range, steps) => {
          const rapl = fakeRapl()
          let raw = Math.floor(range / 2)
          rapl.add('intel-rapl:0', 'package-0', raw, range)
          using m = cpu(1)
          const first = await until(() => m.samples()[0])
          let total = 0
          for (const step of steps) {
            const more = Math.floor(step * range)
            total += more
            raw = raw + more > range ? raw + more - range : raw + more
            rapl.set('intel-rapl:0', raw)
            const written = performance.now()
            await until(() => m.samples({ sinceMs: written })[0])
          }
          const last = m.samples().at(-1)
          expect((last?.joules ?? -1) - (first.joules ?? 0)).toBeCloseTo(total * 1e-6, 6)
          expect(last?.resets).toBe(0)
        },
      ),
      { numRuns: 10 },
    )
  })

  it('a counter that goes back without a range was reset: unknown, not negative', async () => {
    const rapl = fakeRapl()
    rapl.add('intel-rapl:0', 'package-0', 9_000_000)
    using m = cpu()
    const seen = await m.measure(async () => {
      rapl.set('intel-rapl:0', 1_000_000)
      await sleep(50)
    })
    expect(seen).toMatchObject({ joules: null, source: null })
    expect(seen.reason).toMatch(/went back/)
  })

  it('power comes from the counter', async () => {
    const rapl = fakeRapl()
    let energy = 0
    rapl.add('intel-rapl:0', 'package-0', energy, 1e12)
    using m = cpu(10)
    const start = performance.now()
    await until(() => {
      energy = (performance.now() - start) * 80_000 // 80 W
      rapl.set('intel-rapl:0', energy)
      return m.samples().filter(({ watts }) => watts !== null).length > 30
    })
    const samples = m.samples()
    let [checked, found] = [0, 0]
    for (const [i, { timeMs, joules, watts }] of samples.entries()) {
      if (watts === null || timeMs - (samples[i - 1]?.timeMs ?? timeMs) < 6) continue
      // Samples that follow each other too closely have no power of their own: the base is an earlier one, or, where a reading came
      // before this monitor's turn, one that it never saw.
      const since = samples.slice(0, i).reverse()
      const power = (base: { timeMs: number; joules: number | null }) =>
        (1000 * ((joules ?? 0) - (base.joules ?? 0))) / (timeMs - base.timeMs)
      if (since.some((base) => Math.abs(power(base) - watts) < 1e-3 * watts)) found++
      checked++
    }
    expect(found).toBeGreaterThan(5)
    expect(found).toBeGreaterThan(0.75 * checked)
    expect(samples.some(({ watts }) => (watts ?? 0) > 20)).toBe(true)
  })

  it('a counter that disappears is unknown with the reason', async () => {
    const rapl = fakeRapl()
    rapl.add('intel-rapl:0', 'package-0', 1, 1e9)
    using m = cpu()
    const seen = await m.measure(async () => {
      rapl.remove('intel-rapl:0')
      await sleep(30)
    })
    expect(seen.reason).toMatch(/intel-rapl:0\/energy_uj can no longer be read/)
  })

  it('a machine without counters gives null, with the folder that was looked at', async () => {
    const rapl = fakeRapl()
    using m = cpu()
    const seen = await m.measure(() => sleep(30))
    expect(seen).toMatchObject({ joules: null, source: null, meanWatts: null })
    expect(seen.reason).toContain(rapl.root)
  })

  it('one package that cannot be read makes the whole unknown, not smaller', async () => {
    const rapl = fakeRapl()
    rapl.add('intel-rapl:0', 'package-0', 1, 1e9)
    rapl.add('intel-rapl:1', 'package-1', Number.NaN, 1e9)
    using m = cpu()
    expect((await m.measure(() => sleep(30))).reason).toMatch(/intel-rapl:1\/energy_uj: not a number/)
  })
})
