/**
 * Real faults of the native code, played in child processes by the addon of test builds (`nexus_faults.node`, which is never packed): a layer goes
 * on with what it has, or is clearly dead, and the process ends.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { loadAddon } from '@nexus/native/binding'
import { describe, expect, test } from 'vitest'
import { devices } from '../../router-kernels/test/support/devices.js'

const child = fileURLToPath(new URL('./fault-child.mjs', import.meta.url))
const built = process.env.NEXUS_FAULTS_PATH ?? join(dirname(loadAddon().path), 'nexus_faults.node')
const missing = [built, fileURLToPath(new URL('../dist/index.js', import.meta.url))].filter((path) => !existsSync(path))

interface Seen {
  readonly errors: readonly { readonly name: string; readonly code?: string; readonly message: string }[]
  readonly sums: readonly number[]
  readonly failures: { readonly during: string; readonly code: string | null; readonly message: string } | null
  readonly graphs: { readonly hits: number; readonly fallbacks: Record<string, number> } | null
  readonly reason: string | null
  readonly dead: { readonly name: string; readonly code: string } | null
}

async function run(scenario: 'fused' | 'tiered', device: string, fault: string | null): Promise<Seen> {
  const env = { ...process.env, NEXUS_NATIVE_PATH: built, ...(fault !== null && { NEXUS_FAULT: fault }) }
  const { stdout } = await promisify(execFile)(process.execPath, [child, scenario, device], { env, timeout: 60_000 })
  return JSON.parse(stdout) as Seen
}

describe.skipIf(missing.length > 0)(`faults${missing.length > 0 ? `: not built: ${missing.join(', ')}` : ''}`, () => {
  describe.each(devices)('on %s', (device) => {
    test('without a fault: all steps, by graphs', { timeout: 60_000 }, async () => {
      const seen = await run('tiered', device, null)
      expect(seen).toMatchObject({ errors: [], failures: null, dead: null })
      expect(new Set(seen.sums).size).toBe(1)
      expect(seen.sums).toHaveLength(12)
      expect(seen.graphs?.hits).toBeGreaterThan(0)
    })

    test('no memory for a graph: eager steps, with the reason', { timeout: 60_000 }, async () => {
      const seen = await run('fused', device, 'graph.instantiate:1:oom')
      expect(seen).toMatchObject({ errors: [], dead: null })
      expect(new Set(seen.sums).size).toBe(1)
      expect(seen.graphs?.fallbacks['out-of-memory']).toBeGreaterThan(0)
    })

    test('no memory for a layout midway: the steps go on as they were', { timeout: 60_000 }, async () => {
      const seen = await run('tiered', device, 'partition.create:2:oom')
      expect(seen).toMatchObject({ errors: [], dead: null, failures: { during: 'build' } })
      expect(seen.reason).toMatch(/could not be built/)
      expect(seen.sums).toHaveLength(12)
      expect(new Set(seen.sums).size).toBe(1)
    })

    test.each(['fused', 'tiered'] as const)(
      '%s: the device breaks midway: dead, and it says so',
      { timeout: 60_000 },
      async (scenario) => {
        const seen = await run(scenario, device, 'graph.launch:3:device')
        expect(seen.sums.length).toBeLessThan(12)
        expect(seen.errors.length).toBe(12 - seen.sums.length)
        for (const { code } of seen.errors) expect(code).toBe('ERR_NEXUS_DEVICE')
        expect(seen.errors.at(-1)?.message).toMatch(/this MoELayer is dead/)
        expect(seen.dead).toMatchObject({ name: 'DeviceError' })
      },
    )
  })
})
