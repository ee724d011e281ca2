// Layers in company: shared managers, resizes that fail, tenants, workers that are terminated, disposal at bad times.
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../../router-kernels/test/support/devices.js'
import { ended, noFaults, program } from './run.js'

const run = program(import.meta.url, 'company.mjs')
const none = { wrong: 0, leaked: null }

describe.skipIf(noFaults)(`in company${noFaults === null ? '' : ` (${noFaults})`}`, { timeout: 60_000 }, () => {
  onEachDevice('layers', (device) => {
    test.each([
      ['partition.create:1:oom', 'ERR_NEXUS_ALLOCATION'],
      ['partition.stream:1:oom', 'ERR_NEXUS_OUT_OF_MEMORY'],
    ] as const)('with one manager: %s hits one of them, the other follows, and it catches up', async (fault, code) => {
      const told = await run('sharedManager', device, { given: { fault } })
      expect(told).toMatchObject(ended({ ...none, failures: [code, null], caughtUp: true }))
    })

    test('hundreds of resizes in a row, a seventh of which cannot be built', async () => {
      const told = await run('resizes', device, { given: { rounds: 280 } })
      expect(told).toMatchObject(
        ended({ ...none, done: 280 - 40, failed: 40, kept: 40, codes: { ERR_NEXUS_ALLOCATION: 40 } }),
      )
      expect((told.result as { layouts: number }).layouts).toBeLessThanOrEqual(5) // maxLayouts, and the one in use
    })

    test('a slice larger than the device', async () => {
      const told = await run('tooLarge', device)
      expect(told).toMatchObject(ended({ leaked: null, fine: null }))
      const { sms, granularity, errors } = told.result as {
        sms: number
        granularity: number
        errors: Record<string, { name: string; message: string }>
      }
      const allocation = { name: 'SliceAllocationError', code: 'ERR_NEXUS_ALLOCATION' }
      expect(errors).toMatchObject({
        allocate: { ...allocation, requestedSms: sms + granularity },
        everything: { ...allocation, requestedSms: sms },
        build: { ...allocation, requestedSms: sms + granularity },
        promised: allocation,
        total: { name: 'RangeError', message: expect.stringMatching(/^slices\.total: /) },
        strange: { name: 'RangeError', message: expect.stringMatching(/^slices\.manager: /) },
      })
    })

    test('as tenants: one that fails leaves the other alone', async () => {
      const told = await run('tenants', device, { given: { fault: 'layer.step:2:oom' } })
      expect(told).toEqual({
        ...ended({
          before: [null, null],
          during: [null, 'ERR_NEXUS_OUT_OF_MEMORY'],
          after: [null, null],
          disposal: null,
        }),
        ms: expect.any(Number),
      })
    })

    test('as tenants of a device that breaks: each run ends with typed errors', async () => {
      const told = await run('tenants', device, { given: { fault: 'layer.step:2:device' } })
      expect(told).toMatchObject(ended({ before: [null, null], disposal: null }))
      const { during, after } = told.result as { during: string[]; after: string[] }
      expect(during[1]).toBe('ERR_NEXUS_DEVICE')
      expect(new Set(after)).toEqual(new Set(['ERR_NEXUS_DEVICE']))
    })

    test.each([
      ['busy', { options: {} }],
      ['busy with slices and graphs', { options: { strategy: 'tiered', graphs: true } }],
    ] as const)('a worker that is %s is terminated', async (_, given) => {
      expect(await run('worker', device, { given })).toMatchObject(ended({ ...none, quick: true }))
    })

    test('disposed of by its own policy', async () => {
      expect(await run('disposedInside', device)).toMatchObject(
        ended({ outcomes: ['ok', 'ERR_NEXUS_DISPOSED'], disposed: true, dead: 'ERR_NEXUS_DISPOSED', leaked: null }),
      )
    })

    test.each(['plain', 'tiered', 'streams', 'cooperative'])(
      '%s: disposed of with steps in flight',
      async (strategy) => {
        const given = { options: strategy === 'plain' ? {} : { strategy, graphs: { captureAfter: 1 } } }
        expect(await run('disposedInFlight', device, { given })).toMatchObject(ended({ ...none, fates: ['resolved'] }))
      },
    )
  })

  test('a worker in a step that never ends is terminated', async () => {
    expect(await run('worker', 'cpu', { given: { hang: true } })).toMatchObject(ended({ quick: true, wrong: 0 }))
  })
})
