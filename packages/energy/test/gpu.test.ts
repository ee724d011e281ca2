// A monitor on the stand-in for NVML: what it measures, and each way in which a driver disappoints.
import { DisposedError } from '@nexus/native'
import { describe, expect, it } from 'vitest'
import { EnergyMonitor, type EnergyMonitorOptions } from '../src/index.js'
import { fakeNvml, gpu0, gpu1, noFakeNvml, sleep, until } from './support/fakes.js'

const monitor = (more: Partial<EnergyMonitorOptions> = {}): EnergyMonitor =>
  new EnergyMonitor({ device: gpu0, intervalMs: 10, ...more })

/** Work that takes at least `ms`, and until the sampler, on a busy machine, has come round often enough for the counter. */
async function work(m: EnergyMonitor, ms: number): Promise<void> {
  const start = performance.now()
  await sleep(ms)
  await until(() => m.samples({ sinceMs: start }).length > 25)
}

// Where the machine is so busy that a window of power samples has a hole, the measurement is null, and rightly: hence the retries.
describe.skipIf(noFakeNvml)(`GPU${noFakeNvml === null ? '' : ` (${noFakeNvml})`}`, { retry: 3 }, () => {
  it('measures by the counter, with the result of the work and everything else that is known', async () => {
    fakeNvml(
      'devices 2',
      'tick_ms 10',
      'power 1 400000',
      'memory_power 1 90000',
      'utilisation 1 97 40',
      'gpm 1 80 35 60 20',
      'throttle 1 4',
    )
    using m = monitor({ device: gpu1 })
    const seen = await m.measure(async () => {
      await work(m, 600)
      return 'done'
    })
    expect(seen).toMatchObject({
      result: 'done',
      device: gpu1,
      source: 'nvml-energy-counter',
      reason: null,
      gpuUtilisation: expect.closeTo(0.97, 9),
      memoryUtilisation: expect.closeTo(0.4, 9),
      tensorActivity: expect.closeTo(0.6, 9),
      dramActivity: expect.closeTo(0.2, 9),
      throttle: { 'sw-power-cap': expect.closeTo(1, 9) },
    })
    expect(seen.meanWatts).toBeGreaterThan(360)
    expect(seen.meanWatts).toBeLessThan(440)
    expect(seen.joules).toBeCloseTo(((seen.meanWatts ?? 0) * seen.windowMs) / 1000, 9)
    expect(seen.reasons.idleJoules).toMatch(/measureIdle/)
    expect(seen.reasons.memoryJoules).toMatch(/average over 1 s/)
  })

  it('a synchronous function is measured as well: sampling does not need the event loop', async () => {
    fakeNvml('tick_ms 10', 'power 0 200000')
    using m = monitor()
    const seen = await m.measure(() => {
      const end = performance.now() + 600
      while (performance.now() < end);
      return 7
    })
    expect(seen).toMatchObject({ result: 7, source: 'nvml-energy-counter' })
    expect(seen.samples).toBeGreaterThan(5)
  })

  it('short windows come from power samples, shorter ones are unknown and not 0', async () => {
    fakeNvml('tick_ms 100', 'power 0 250000')
    using m = monitor()
    const short = await m.measure(() => sleep(200))
    expect(short).toMatchObject({ source: 'nvml-power-integral', power: 'instant' })
    expect(short.meanWatts).toBeCloseTo(250, 6)
    const shorter = await m.measure(() => 1)
    expect(shorter).toMatchObject({ joules: null, source: null, meanWatts: null })
    expect(shorter.reason).toMatch(/counter moved \d times in .* fewer than 10; \d power samples lie in the window/)
  })

  it('separates idle energy once the idle power was measured', async () => {
    const nvml = fakeNvml('tick_ms 10', 'power 0 100000')
    using m = monitor()
    const idle = await m.measureIdle({ durationMs: 800 })
    expect(idle).toMatchObject({ source: 'nvml-energy-counter', reason: null })
    expect(idle.watts).toBeGreaterThan(85)
    expect(idle.watts).toBeLessThan(115)
    expect(m.idleWatts).toBe(idle.watts)
    nvml.say('tick_ms 10', 'power 0 300000')
    await sleep(30)
    const seen = await m.measure(() => work(m, 500))
    expect(seen.idleJoules).toBeCloseTo(((idle.watts ?? 0) * seen.windowMs) / 1000, 9)
    expect((seen.idleJoules ?? 0) + (seen.activeJoules ?? 0)).toBeCloseTo(seen.joules ?? -1, 9)
    expect(seen.activeJoules).toBeGreaterThan(60)
  })

  it('a busy device gives no idle baseline', async () => {
    fakeNvml('tick_ms 10', 'utilisation 0 50 10')
    using m = monitor({ idleWatts: 90 })
    const idle = await m.measureIdle({ durationMs: 200 })
    expect(idle).toMatchObject({ watts: null, source: null })
    expect(idle.reason).toMatch(/in use for 50 %/)
    expect(m.idleWatts).toBe(90)
  })

  it('a refused counter leaves the power; what both refuse is unknown with both reasons', async () => {
    const nvml = fakeNvml('tick_ms 10', 'power 0 150000', 'status nvmlDeviceGetTotalEnergyConsumption 0 4')
    {
      using m = monitor()
      const seen = await m.measure(() => sleep(300))
      expect(seen).toMatchObject({ source: 'nvml-power-integral', ticks: null })
      expect(m.status().unknown.joules).toMatch(/Insufficient Permissions \(4\)/)
    }
    nvml.say('status nvmlDeviceGetTotalEnergyConsumption 0 4', 'status nvmlDeviceGetFieldValues 0 3')
    using m = monitor()
    const seen = await m.measure(() => sleep(200))
    expect(seen.joules).toBeNull()
    expect(seen.reason).toMatch(/Insufficient Permissions \(4\); nvmlDeviceGetFieldValues.*Not Supported \(3\)/)
  })

  it('one refused call costs one figure', async () => {
    fakeNvml('tick_ms 10', 'gpm 0 10 20 30 40', 'status nvmlDeviceGetUtilizationRates 0 4')
    using m = monitor()
    const seen = await m.measure(() => work(m, 400))
    expect(seen).toMatchObject({ gpuUtilisation: null, memoryUtilisation: null, smActivity: expect.closeTo(0.1, 9) })
    expect(seen.joules).not.toBeNull()
    expect(seen.reasons.gpuUtilisation).toBe('nvmlDeviceGetUtilizationRates: Insufficient Permissions (4)')
  })

  it('a counter that is reset in the window is not used, and never gives negative energy', async () => {
    const nvml = fakeNvml('tick_ms 10', 'power 0 500000')
    using m = monitor()
    await sleep(200)
    const seen = await m.measure(async () => {
      await sleep(150)
      nvml.say('tick_ms 10', 'power 0 500000', 'reset 0 1')
      await sleep(150)
    })
    expect(seen).toMatchObject({ source: 'nvml-power-integral' })
    expect(seen.meanWatts).toBeCloseTo(500, 3)
    const totals = m.samples().map((sample) => sample.joules ?? 0)
    for (const [i, total] of totals.entries()) expect(total).toBeGreaterThanOrEqual(totals[i - 1] ?? 0)
    expect(m.samples().at(-1)?.resets).toBe(1)
  })

  it('a device that vanishes is unknown with the reason, and measured again when it is back', async () => {
    const nvml = fakeNvml('tick_ms 10', 'power 0 300000')
    using m = monitor()
    const seen = await m.measure(async () => {
      await sleep(100)
      nvml.say('status * 0 15')
      await sleep(100)
    })
    expect(seen).toMatchObject({ joules: null, source: null })
    expect(seen.reason).toMatch(/GPU is lost \(15\)/)
    nvml.say('tick_ms 10', 'power 0 300000')
    await until(() => m.status().unknown.watts === undefined)
    expect(await m.measure(() => work(m, 300))).toMatchObject({ source: 'nvml-energy-counter' })
  })

  it('a call that hangs blocks nobody: the measurement ends, and names the call', async () => {
    const nvml = fakeNvml('tick_ms 10', 'power 0 300000')
    using m = monitor({ watchdogMs: 150 })
    await until(() => m.samples().length > 0)
    let turns = 0
    const timer = setInterval(() => turns++, 5)
    const start = performance.now()
    const seen = await m.measure(async () => {
      nvml.say('hang nvmlDeviceGetFieldValues')
      await sleep(300)
      return 'worked'
    })
    clearInterval(timer)
    expect(performance.now() - start).toBeLessThan(3000)
    expect(turns).toBeGreaterThan(20)
    expect(seen).toMatchObject({ result: 'worked', joules: null, source: null })
    expect(seen.reason).toMatch(/NVML hangs: nvmlDeviceGetFieldValues has not returned for \d+ ms/)
    expect(m.status().blocked).toMatchObject({ call: 'nvmlDeviceGetFieldValues' })
    // Also for who comes now: at once, since it is known by now.
    const next = performance.now()
    using second = monitor({ watchdogMs: 150 })
    expect((await second.measure(() => 1)).joules).toBeNull()
    expect(performance.now() - next).toBeLessThan(1000)
    nvml.say('tick_ms 10', 'power 0 300000')
    await until(() => m.status().blocked === null && second.samples().length > 3)
    expect(await second.measure(() => work(second, 300))).toMatchObject({ source: 'nvml-energy-counter' })
  })

  it('a MIG instance has activity of its own, and says whose energy to look at', async () => {
    fakeNvml('devices 2', 'mig 1 3', 'gpm 1 50 25 10 5')
    using m = monitor({ device: 'MIG-00000001-0000-4000-8000-000000000003', intervalMs: 100 })
    const seen = await m.measure(() => sleep(400))
    expect(seen).toMatchObject({ joules: null, smActivity: expect.closeTo(0.5, 9) })
    expect(seen.reason).toContain(`monitor its GPU, ${gpu1}`)
  })

  it('several monitors share the device, each at its pace; one that ends leaves the others', async () => {
    fakeNvml('tick_ms 10')
    using quick = monitor()
    const slow = monitor({ intervalMs: 100 })
    await until(() => slow.samples().length >= 4)
    expect(quick.samples().length).toBeGreaterThan(2 * slow.samples().length)
    slow.dispose()
    const count = quick.samples().length
    await until(() => quick.samples().length > count + 3)
  })

  it('keeps so many samples, and those since a time', async () => {
    fakeNvml('tick_ms 10')
    using m = monitor({ historySamples: 5 })
    await until(() => m.status().droppedSamples > 3)
    const samples = m.samples()
    expect(samples).toHaveLength(5)
    const since = samples[2]?.timeMs ?? 0
    expect(m.samples({ sinceMs: since }).every(({ timeMs }) => timeMs >= since)).toBe(true)
    expect(Math.abs((m.samples().at(-1)?.timeMs ?? 0) - performance.now())).toBeLessThan(1000)
  })

  it('long windows need the counter only: the ring may be shorter than they are', async () => {
    fakeNvml('tick_ms 10', 'power 0 200000')
    using m = monitor({ historySamples: 4 })
    const seen = await m.measure(async () => {
      const before = m.status().droppedSamples
      await sleep(400)
      await until(() => m.status().droppedSamples > before + 25)
    })
    expect(seen).toMatchObject({ source: 'nvml-energy-counter' })
    expect(seen.meanWatts).toBeGreaterThan(170)
  })
})

describe('without NVML', () => {
  it('figures are null and the reason names the library', async () => {
    const before = process.env.NEXUS_NVML_PATH
    process.env.NEXUS_NVML_PATH = '/nowhere/libnvml.so'
    try {
      using m = monitor()
      const seen = await m.measure(() => sleep(30))
      expect(seen.joules).toBeNull()
      expect(seen.reason).toContain('/nowhere/libnvml.so')
      expect(m.status().unknown.watts).toContain('/nowhere/libnvml.so')
    } finally {
      if (before === undefined) delete process.env.NEXUS_NVML_PATH
      else process.env.NEXUS_NVML_PATH = before
    }
  })
})

describe('lifetime', () => {
  it('dispose, twice; then everything throws DisposedError', async () => {
    const m = monitor()
    m.dispose()
    m.dispose()
    expect(m.disposed).toBe(true)
    expect(() => m.samples()).toThrow(DisposedError)
    expect(() => m.status()).toThrow(DisposedError)
    await expect(m.measure(() => 1)).rejects.toThrow(DisposedError)
  })

  it('disposed during a measurement, the measurement rejects', async () => {
    const m = monitor()
    await expect(m.measure(() => m.dispose())).rejects.toThrow(DisposedError)
  })

  it('a signal ends the monitor, or a measurement, with its reason', async () => {
    const ends = new AbortController()
    const m = monitor({ signal: ends.signal })
    const running = m.measure(() => sleep(50))
    ends.abort(new Error('enough'))
    await expect(running).rejects.toThrow('enough')
    expect(m.disposed).toBe(true)
    expect(() => monitor({ signal: AbortSignal.abort(new Error('never')) })).toThrow('never')

    using other = monitor()
    await expect(other.measureIdle({ durationMs: 60_000, signal: AbortSignal.timeout(20) })).rejects.toThrow(/timeout/)
    expect(other.disposed).toBe(false)
  })

  it('an error of the work is the error of the measurement', async () => {
    using m = monitor()
    const failure = new Error('work')
    await expect(m.measure(() => Promise.reject(failure))).rejects.toBe(failure)
    await expect(
      m.measure(() => {
        throw failure
      }),
    ).rejects.toBe(failure)
  })

  it('wrong options are named', async () => {
    expect(() => new EnergyMonitor({ interval: 5 } as never)).toThrow(
      /unknown option 'interval'; did you mean 'intervalMs'/,
    )
    expect(() => monitor({ intervalMs: 0 })).toThrow(/intervalMs: .* from 1 to 3600000, got 0/)
    expect(() => monitor({ historySamples: 1 })).toThrow(/historySamples/)
    expect(() => monitor({ watchdogMs: 1 })).toThrow(/watchdogMs/)
    expect(() => monitor({ idleWatts: -1 })).toThrow(/idleWatts/)
    expect(() => monitor({ device: 'gpu' as never })).toThrow(/device/)
    expect(() => monitor({ device: 'GPU-what' })).toThrow(/expected a UUID/)
    expect(() => monitor({ signal: 1 as never })).toThrow(/signal: expected an AbortSignal, got 1/)
    using m = monitor()
    await expect(m.measure(1 as never)).rejects.toThrow(/fn: expected a function, got 1/)
    await expect(m.measureIdle({ durationMs: 1 })).rejects.toThrow(/durationMs/)
    expect(() => m.samples({ since: 1 } as never)).toThrow(/unknown option/)
  })
})
