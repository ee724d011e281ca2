// A device that breaks in the middle of a plan: typed errors from then on, everywhere, and nothing that hangs; another device is not concerned.
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../../router-kernels/test/support/devices.js'
import { ended, noFaults, program } from './run.js'

const run = program(import.meta.url, 'layer.mjs')
const broke = {
  name: 'DeviceError',
  code: 'ERR_NEXUS_DEVICE',
  nativeError: 'cudaErrorIllegalAddress',
  message: expect.stringContaining('cudaErrorIllegalAddress'),
}
const dead = { ...broke, message: expect.stringMatching(/^this MoELayer is dead, its device has failed: /) }

describe.skipIf(noFaults)(`device errors${noFaults === null ? '' : ` (${noFaults})`}`, { timeout: 60_000 }, () => {
  onEachDevice('a layer', (device) => {
    const points: [strategy: string, graphs: boolean, fault: string][] = [
      ['plain', false, 'layer.step:2:device'],
      ['tiered', false, 'layer.step:2:device'],
      ['tiered', true, 'graph.launch:2:device'],
      ['streams', true, 'graph.launch:2:device'],
      ['cooperative', true, 'graph.launch:2:device'],
    ]
    // Between the lanes of a step: only the CPU's streams have a point at every operation.
    if (device === 'cpu') points.push(['tiered', false, 'stream.enqueue:12:device'])
    test.each(points)('%s, graphs %s: %s', async (strategy, graphs, fault) => {
      const told = await run('broken', device, { given: { strategy, graphs, fault } })
      expect(told).toMatchObject(
        ended({
          second: broke,
          enqueue: dead,
          forward: dead,
          stats: dead,
          neighbour: { code: 'ERR_NEXUS_DEVICE' },
          another: { code: 'ERR_NEXUS_DEVICE' },
          elsewhere: null,
          again: null,
          disposed: { name: 'DisposedError', code: 'ERR_NEXUS_DISPOSED' },
        }),
      )
      const { first, inFlight, disposeMs } = told.result as Record<string, unknown>
      expect(first === null || (first as { code: string }).code === 'ERR_NEXUS_DEVICE').toBe(true)
      expect(inFlight).toMatch(/^(resolved|ERR_NEXUS_DEVICE)$/) // it was first, or it was caught in it
      expect(disposeMs).toBeLessThan(1000)
    })
  })
})
