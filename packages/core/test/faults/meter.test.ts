// The meter of a running layer vanishes, comes back, or hangs: figures are unknown and say why, steps are as they were.
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { gpu0, noFakeNvml } from '../../../energy/test/support/fakes.js'
import { onEachDevice } from '../../../router-kernels/test/support/devices.js'
import { ended, noFaults, program } from './run.js'

const run = program(import.meta.url, 'company.mjs')
const reason = noFaults ?? noFakeNvml
const built = process.env.NEXUS_FAKE_NVML ?? join(import.meta.dirname, '../../../../kernels/build/test/libfake_nvml.so')

/** A library of the test's own: its control file stands beside it. */
function nvml(...orders: string[]): { NEXUS_NVML_PATH: string } {
  const folder = mkdtempSync(join(tmpdir(), 'nexus-faults-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const path = join(folder, 'libnvml.so')
  copyFileSync(built, path)
  writeFileSync(`${path}.control`, `${orders.join('\n')}\n`)
  return { NEXUS_NVML_PATH: path }
}

describe.skipIf(reason)(`a meter that fails${reason === null ? '' : ` (${reason})`}`, { timeout: 60_000 }, () => {
  onEachDevice('beside a layer', (device) => {
    const unhindered = {
      measured: true,
      vanished: true,
      back: true,
      lastFailure: null,
      wrong: 0,
      unhindered: true,
      leaked: null,
    }

    test.each([
      ['the counter is lost', ['status nvmlDeviceGetTotalEnergyConsumption 0 15'], /GPU is lost/],
      ['the device is lost', ['status * 0 15'], /GPU is lost/],
      ['a call hangs', ['hang nvmlDeviceGetTotalEnergyConsumption'], /nvmlDeviceGetTotalEnergyConsumption/],
    ] as const)('%s, and comes back', async (_, orders, why) => {
      const told = await run('meter', device, { env: nvml(), given: { gpu: gpu0, orders } })
      expect(told).toMatchObject(ended({ ...unhindered, reason: expect.stringMatching(why) }))
    })

    test('a call hangs for good: nothing waits for it, and the process ends', async () => {
      const env = nvml('hang nvmlDeviceGetTotalEnergyConsumption')
      const told = await run('meterHangs', device, { env, given: { gpu: gpu0 } })
      expect(told).toMatchObject(ended({ joules: null, told: true, quick: true }))
    })
  })
})
