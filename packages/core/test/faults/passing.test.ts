// Faults that pass: out of memory and errors at every point of a layer's life. Typed errors or a stated fallback, right bits in all other
// steps, and memory, threads and files as before.
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../../router-kernels/test/support/devices.js'
import { ended, noFaults, program } from './run.js'

const run = program(import.meta.url, 'layer.mjs')
const none = { wrong: 0, leaked: null }
const outOfMemory = { name: 'OutOfMemoryError', code: 'ERR_NEXUS_OUT_OF_MEMORY' }
const internal = { name: 'NexusError', code: 'ERR_NEXUS_INTERNAL' }

describe.skipIf(noFaults)(`faults that pass${noFaults === null ? '' : ` (${noFaults})`}`, { timeout: 60_000 }, () => {
  onEachDevice('a layer', (device) => {
    const passing = async (given: object) => (await run('passing', device, { given })) as { result: unknown }

    test.each([
      ['graph.capture:1:oom', 'out-of-memory'],
      ['graph.instantiate:1:oom', 'out-of-memory'],
      ['step.launch:1:error', 'capture-failed'],
      ['step.launch:1:oom', 'capture-failed'],
    ] as const)('recording fails (%s): eager steps with the reason, and a graph later', async (fault, why) => {
      const told = await passing({ strategy: 'tiered', early: true, fault })
      expect(told).toMatchObject(ended({ ...none, errors: [], failures: 0 }))
      const { graphs } = told.result as { graphs: { hits: boolean; fallbacks: Record<string, number>; last: string } }
      expect(graphs.fallbacks[why]).toBe(16) // not tried again at every step
      expect(graphs.last).toMatch(/^capture failed: .*injected fault/)
      expect(graphs.hits).toBe(true)
    })

    test.each([
      ['partition.create:1:oom', 'plan', { name: 'SliceAllocationError', code: 'ERR_NEXUS_ALLOCATION' }],
      ['partition.stream:1:oom', 'build', outOfMemory],
      ['lane_set.update:1:oom', 'build', outOfMemory],
      ['lane_set.update:1:error', 'build', internal],
    ] as const)(
      'what another layout needs cannot be made (%s): the last plan goes on',
      async (fault, during, error) => {
        const told = await passing({ strategy: 'tiered', restless: 'layouts', fault })
        expect(told).toMatchObject(ended({ ...none, errors: [], failures: 1, last: { during, ...error } }))
        expect((told.result as { last: { message: string } }).last.message).toMatch(/injected fault/)
      },
    )

    test.each([
      ['plain', 'layer.step:1:oom', outOfMemory],
      ['streams', 'graph.launch:3:oom', outOfMemory],
      ['tiered', 'graph.launch:3:error', internal],
      ['cooperative', 'buffer.allocate:2:oom', outOfMemory],
    ] as const)('%s: a step that fails (%s) says so, and the next is right', async (strategy, fault, error) => {
      const told = await passing({ strategy, fault })
      expect(told).toMatchObject(ended({ ...none, errors: [error], failures: 0 }))
    })

    test.each([
      ['buffer.allocate', 'oom', 5],
      ['host.allocate', 'oom', 1],
      ['partition.create', 'oom', 1],
      ['partition.stream', 'oom', 3],
      ['partition.stream', 'error', 3],
      ['count_ring.create', 'oom', 1],
      ['lane_set.update', 'oom', 1],
      ['layer.step', 'error', 1],
      ['graph.launch', 'error', 3],
      // What waits for the device, reading included: a point of the CPU's streams only.
      ...(device === 'cpu' ? ([['stream.complete', 'oom', 6]] as const) : []),
      ...(device === 'cpu' ? ([['stream.complete', 'error', 6]] as const) : []),
    ] as const)('tiered: %s fails (%s), at every pass of it', async (point, kind, least) => {
      const told = await run('sweep', device, { given: { strategy: 'tiered', point, kind } })
      expect(told).toMatchObject(ended({ wrong: 0, leaks: [] }))
      const { seen, faults } = told.result as { seen: Record<string, number>; faults: number }
      expect(faults).toBeGreaterThanOrEqual(least)
      const typed =
        point === 'partition.create'
          ? 'SliceAllocationError ERR_NEXUS_ALLOCATION'
          : kind === 'oom'
            ? 'OutOfMemoryError ERR_NEXUS_OUT_OF_MEMORY'
            : 'NexusError ERR_NEXUS_INTERNAL'
      expect(Object.keys(seen)).toEqual([typed])
    })

    test('streams: stream.create fails, at every pass of it', async () => {
      const given = { strategy: 'streams', point: 'stream.create', kind: 'oom' }
      const told = await run('sweep', device, { given })
      expect(told).toMatchObject(ended({ wrong: 0, leaks: [] }))
      const { seen } = told.result as { seen: Record<string, number> }
      expect(Object.keys(seen)).toEqual(['OutOfMemoryError ERR_NEXUS_OUT_OF_MEMORY'])
      expect(Object.values(seen)[0]).toBeGreaterThanOrEqual(3)
    })
  })
})
