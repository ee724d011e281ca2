// A step that never ends. Its promise stays pending, and the stream with it; whatever else is called returns, other streams go on, and the
// process can end.
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../../router-kernels/test/support/devices.js'
import { ended, noFaults, program } from './run.js'

const run = program(import.meta.url, 'layer.mjs')

describe.skipIf(noFaults)(`a hang${noFaults === null ? '' : ` (${noFaults})`}`, { timeout: 60_000 }, () => {
  onEachDevice('a layer', (device) => {
    const seen = {
      quick: true,
      pending: 'pending',
      beside: 16,
      after: { name: 'DisposedError', code: 'ERR_NEXUS_DISPOSED' },
      still: 'pending',
      asyncDispose: 'pending',
    }
    // CUDA's own clean-up at exit may wait for what hangs (a sleeping host function here): only a signal is sure to end it.
    const unsure = device === 'cpu' ? [] : ['tiered', 'cooperative']
    describe.each([
      ['plain', false],
      ['tiered', true],
      ['cooperative', false],
    ] as const)('%s, graphs %s', (strategy, graphs) => {
      test.skipIf(unsure.includes(strategy))('process.exit() ends it', async () => {
        const told = await run('hang', device, { given: { strategy, graphs, exit: true } })
        expect(told).toMatchObject(ended(seen))
      })
    })

    test('a promise that is pending keeps the process; a signal ends it', async () => {
      const given = { strategy: 'plain', graphs: false }
      const told = await run('hang', device, { given, timeoutMs: device === 'cpu' ? 3000 : 20_000 })
      expect(told).toMatchObject({ status: null, signal: 'SIGKILL', result: seen })
    })

    test('with no promise pending the process ends by itself', async () => {
      expect(await run('forgotten', device)).toMatchObject(ended('left'))
    })
  })
})
