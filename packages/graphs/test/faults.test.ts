// Faults under the cache: recording, instantiating and launching fail, the device breaks, a launch never ends. Injected, in processes of their own.
import { describe, expect, test } from 'vitest'
import { ended, noFaults, program } from '../../core/test/faults/run.js'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'

const run = program(import.meta.url, 'faults.mjs')
const fallback = (reason: string, times: number) => ({
  'capture-failed': 0,
  'out-of-memory': 0,
  unsupported: 0,
  'over-budget': 0,
  [reason]: times,
})

describe.skipIf(noFaults)(`injected faults${noFaults === null ? '' : ` (${noFaults})`}`, { timeout: 60_000 }, () => {
  onEachDevice('a graph cache', (device) => {
    const fine = { wrong: 0, leaked: null, graphs: 1 }

    test.each(['graph.capture:1:oom', 'graph.instantiate:1:oom'])(
      'no memory to record (%s): eager with the reason, and a graph when it is tried again',
      async (fault) => {
        const told = await run('recording', device, { given: { fault } })
        expect(told).toMatchObject(
          ended({
            ...fine,
            errors: [],
            modes: `${'e'.repeat(17)}${'g'.repeat(7)}`,
            fallbacks: fallback('out-of-memory', 16),
            lastFallback: expect.stringMatching(/^capture failed: .*out of memory: injected fault/),
          }),
        )
      },
    )

    test('an error of ours while recording is thrown, and the next step is recorded', async () => {
      const told = await run('recording', device, { given: { fault: 'graph.capture:1:error' } })
      const error = { name: 'NexusError', code: 'ERR_NEXUS_INTERNAL' }
      expect(told).toMatchObject(
        ended({ ...fine, errors: [error], modes: `e${'g'.repeat(22)}`, fallbacks: fallback('unsupported', 0) }),
      )
    })

    test('a launch that fails is thrown; the graph stays and serves the next step', async () => {
      const told = await run('recording', device, { given: { fault: 'graph.launch:2:oom' } })
      const error = { name: 'OutOfMemoryError', code: 'ERR_NEXUS_OUT_OF_MEMORY' }
      expect(told).toMatchObject(ended({ ...fine, errors: [error], modes: `e${'g'.repeat(22)}` }))
    })

    test('a storm of faults over many keys: right steps between them, and nothing is left', async () => {
      expect(await run('storm', device)).toMatchObject(
        ended({
          codes: ['ERR_NEXUS_INTERNAL', 'ERR_NEXUS_OUT_OF_MEMORY'],
          wrong: 0,
          few: true,
          evicted: true,
          captured: true,
          leaked: null,
        }),
      )
    })

    test('a device that breaks in a launch: no fallback, typed errors, and disposing returns', async () => {
      const broke = { code: 'ERR_NEXUS_DEVICE', nativeError: 'cudaErrorIllegalAddress' }
      expect(await run('broken', device)).toMatchObject(
        ended({
          first: broke,
          second: broke,
          // CUDA records on a broken context as if nothing were wrong: launching shows it.
          ...(device === 'cpu' ? { capture: { code: 'ERR_NEXUS_DEVICE' } } : {}),
          read: { code: 'ERR_NEXUS_DEVICE' },
          disposal: null,
          after: { code: 'ERR_NEXUS_DISPOSED' },
        }),
      )
    })

    test('a launch that never ends: another graph goes on, disposing returns, and the process ends', async () => {
      expect(await run('hang', device)).toMatchObject(
        ended({ quick: true, pending: 'pending', beside: true, after: { code: 'ERR_NEXUS_DISPOSED' } }),
      )
    })
  })
})
