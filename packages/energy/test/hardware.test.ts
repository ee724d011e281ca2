// A real GPU: the counter, the power samples and the idle baseline must agree with each other.
import { resolveDevice, Stream, Tensor } from '@nexus/native'
import { describe, expect, it } from 'vitest'
import { EnergyMonitor, energyInventory } from '../src/index.js'
import { integrate } from '../src/measurement.js'

function whyNoGpu(): string | null {
  try {
    resolveDevice('cuda')
    return null
  } catch (error) {
    if (process.env.NEXUS_REQUIRE_GPU === '1') throw error
    return error instanceof Error ? error.message : String(error)
  }
}
const missing = whyNoGpu()

describe.skipIf(missing)(`a real GPU${missing === null ? '' : ` (${missing})`}`, () => {
  it('uses more while it works; counter and power samples tell the same', async () => {
    using monitor = new EnergyMonitor({ device: 'cuda' })
    expect((await energyInventory()).gpus.map(({ uuid }) => uuid)).toContain(monitor.uuid)
    const stream = Stream.default('cuda')
    const idle = await monitor.measureIdle({ durationMs: 2000 })
    const seen = await monitor.measure(async () => {
      const end = performance.now() + 4000
      while (performance.now() < end) {
        for (let i = 0; i < 20; i++) Tensor.randn([1 << 24], { device: 'cuda', seed: i }).dispose()
        await stream.synchronize()
      }
    })
    console.log('idle', idle, '\nwork', seen, '\nunknown', monitor.status().unknown)
    if (seen.joules === null) {
      expect(seen.reason).toMatch(/\w/)
      return
    }
    expect(seen.meanWatts).toBeGreaterThan(20)
    expect(seen.meanWatts).toBeLessThan(1500)
    if (idle.watts !== null) expect(seen.activeJoules).toBeGreaterThan(0)
    if (seen.source !== 'nvml-energy-counter') return
    expect(seen.ticks).toBeGreaterThan(25)
    const endMs = performance.now() - 50
    const samples = monitor.samples()
    const power = integrate(
      {
        device: monitor.device,
        kind: 'gpu',
        intervalMs: 100,
        startMs: endMs - 3000,
        endMs,
        before: '',
        after: '',
        samples,
        unknown: {},
        idleWatts: '',
      },
      'watts',
    )
    if (typeof power === 'number') expect(Math.abs(power / 3 / (seen.meanWatts ?? 0) - 1)).toBeLessThan(0.25)
  })

  it('10 ms cannot be measured: null and not 0', async () => {
    using monitor = new EnergyMonitor({ device: 'cuda' })
    const seen = await monitor.measure(() => new Promise((resolve) => setTimeout(resolve, 10)))
    expect(seen).toMatchObject({ joules: null, source: null, reason: expect.stringMatching(/\w/) })
  })
})
