// Faults among the slices: partitions that cannot be built, streams that cannot be made, a device that breaks or hangs under them, policies that
// answer anything at all. Injected ones run in a process of their own.
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ended, noFaults, program } from '../../core/test/faults/run.js'
import { ExpertProfiler } from '../../profiler/src/index.js'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { h200, SliceAllocationError, SliceManager } from '../src/index.js'

const run = program(import.meta.url, 'faults.mjs')

describe.skipIf(noFaults)(`injected faults${noFaults === null ? '' : ` (${noFaults})`}`, { timeout: 60_000 }, () => {
  onEachDevice('slices', (device) => {
    test.each([
      ['partition.create:1:oom', 'OutOfMemoryError'],
      ['partition.create:1:error', 'NexusError'],
    ] as const)(
      'a layout that cannot be built (%s): nothing has changed, and the next attempt builds it',
      async (fault, cause) => {
        const told = await run('unbuilt', device, { given: { fault } })
        expect(told).toMatchObject(
          ended({
            error: { name: 'SliceAllocationError', code: 'ERR_NEXUS_ALLOCATION' },
            errors: expect.arrayContaining([cause]),
            kept: true,
            failures: 1,
            built: true,
            works: true,
            leaked: null,
          }),
        )
      },
    )

    test('a stream that cannot be made: the partition is as before, and the next attempt makes it', async () => {
      expect(await run('unstreamed', device)).toMatchObject(
        ended({ error: { name: 'OutOfMemoryError', code: 'ERR_NEXUS_OUT_OF_MEMORY' }, works: true, leaked: null }),
      )
    })

    test('hundreds of layouts, built and given up', async () => {
      expect(await run('manyLayouts', device)).toMatchObject(ended({ leaked: null, live: 0 }))
    })

    test('a device that breaks: every call says so, and disposing returns', async () => {
      const broke = { name: 'DeviceError', code: 'ERR_NEXUS_DEVICE' }
      const told = await run('broken', device)
      expect(told).toMatchObject(
        ended({
          stream: broke,
          allocate: { code: 'ERR_NEXUS_ALLOCATION', cause: 'SliceAllocationError' },
          disposal: null,
          live: 0,
        }),
      )
    })

    test('a slice that hangs: another slice goes on, giving the partition up returns, and the process ends', async () => {
      expect(await run('hang', device)).toMatchObject(
        ended({
          other: 'resolved',
          quick: true,
          disposed: true,
          closed: 'pending',
          use: { code: 'ERR_NEXUS_DISPOSED' },
        }),
      )
    })
  })
})

describe('a policy that returns nonsense', () => {
  const profile = () => {
    const profiler = new ExpertProfiler({ numExperts: 4 })
    profiler.record({ counts: [4, 3, 2, 1], tokens: 5 })
    return profiler.snapshot()
  }

  test('whatever it is: a plan that can be followed, or an error that changes nothing', () => {
    const part = fc.oneof(fc.integer({ min: -2, max: 140 }), fc.double(), fc.constant(null), fc.string())
    const nonsense = fc.oneof(
      fc.anything(),
      fc.record({ sms: fc.array(part), sliceOf: fc.array(part), reason: fc.string() }),
      fc.record({ sms: fc.anything(), sliceOf: fc.anything(), reason: fc.anything() }),
    )
    void fc.assert(
      fc.property(nonsense, (value) => {
        let answer: unknown = { sms: [132], sliceOf: [0, 0, 0, 0], reason: 'all' }
        const policy = { name: 'any', decide: () => answer as never }
        const manager = new SliceManager({ device: h200, numExperts: 4, policy })
        const { plan } = manager
        answer = value
        try {
          const next = manager.update(profile())
          expect(next.slices.reduce((sum, { grantedSms }) => sum + grantedSms, 0)).toBe(132)
        } catch (error) {
          expect(error).toBeInstanceOf(SliceAllocationError)
          expect(manager.plan).toBe(plan)
        }
        answer = { sms: [132], sliceOf: [0, 0, 0, 0], reason: 'all' }
        expect(manager.update(profile()).sliceOf).toEqual([0, 0, 0, 0])
        manager.dispose()
      }),
      { numRuns: 500 },
    )
  })

  test('its arrays are its own: what it does to them later changes nothing', () => {
    const decision = { sms: [64, 68], sliceOf: [0, 0, 1, 1], reason: 'halves' }
    const manager = new SliceManager({
      device: h200,
      numExperts: 4,
      policy: { name: 'reusing', decide: () => decision },
    })
    const before = JSON.stringify(manager.plan)
    decision.sms[0] = 1e6
    decision.sliceOf.fill(7)
    expect(JSON.stringify(manager.plan)).toBe(before)
    expect(() => manager.update(profile())).toThrow(SliceAllocationError)
    decision.sms.splice(0, 2, 64, 68)
    decision.sliceOf.splice(0, 4, 1, 1, 0, 0)
    const { migrations } = manager.stats()
    expect(manager.update(profile()).sliceOf).toEqual([1, 1, 0, 0])
    expect(manager.stats().migrations).toBe(migrations + 4)
  })

  const good = { sms: [132], sliceOf: [0, 0, 0, 0], reason: 'all' }
  const throwing = (key: string) =>
    Object.defineProperty({ ...good }, key, {
      get: () => {
        throw new Error('got you')
      },
    })
  let reads = 0
  test.each<[string, () => unknown]>([
    [
      'throws no error',
      () => {
        throw 'a string'
      },
    ],
    [
      'throws nothing',
      () => {
        throw undefined
      },
    ],
    ['has a getter that throws', () => throwing('sms')],
    ['has a reason that throws', () => throwing('reason')],
    ['is a promise', () => Promise.resolve(good)],
    [
      'says another thing at every look',
      () => Object.defineProperty({ ...good }, 'sms', { get: () => (reads++ % 2 === 0 ? [132] : [1e6]) }),
    ],
    [
      'is a proxy that throws',
      () =>
        new Proxy(good, {
          get: () => {
            throw new Error('got you')
          },
        }),
    ],
    ['has holes', () => ({ ...good, sliceOf: new Array(4) })],
  ])('a decision that %s', (_, decide) => {
    let bad = false
    const policy = { name: 'bad', decide: () => (bad ? decide() : good) as never }
    const manager = new SliceManager({ device: h200, numExperts: 4, policy })
    const { plan } = manager
    bad = true
    try {
      const next = manager.update(profile())
      expect(next.slices.map(({ grantedSms }) => grantedSms)).toEqual([132])
    } catch (error) {
      expect(error).toBeInstanceOf(SliceAllocationError)
      expect((error as Error).message).toMatch(/policy 'bad'/)
      expect(manager.plan).toBe(plan)
    }
    bad = false
    expect(manager.update(profile()).sliceOf).toEqual([0, 0, 0, 0])
  })
})
