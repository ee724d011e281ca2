// The policy that docs/slices.md shows is one, and its enforcer runs.
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import * as slices from '../src/index.js'
import { type AllocationPolicy, arrange, conformance } from '../src/index.js'
import { noAddon } from './support/native.js'

const text = readFileSync(new URL('../../../docs/slices.md', import.meta.url), 'utf8')

test('the documented policy has ten lines, and conforms', () => {
  const [, code = ''] = /<!-- own policy -->\s*```js\n([\s\S]*?)```/.exec(text) ?? []
  expect(code.split('\n').filter((line) => line.trim() !== '').length).toBeLessThanOrEqual(10)
  const body = code.replace("import { arrange } from '@nexus/slices'", '').replace('export const cautious =', 'return')
  const policy = new Function('arrange', body)(arrange) as AllocationPolicy
  expect(policy.name).toBe('cautious')
  expect(conformance(policy)).toEqual([])
})

test.skipIf(noAddon)('the documented enforcer holds a device to a plan', () => {
  const [, code = ''] = /<!-- enforcer -->\s*```js\n([\s\S]*?)```/.exec(text) ?? []
  const body = code
    .replace(/import (\{[^}]*\}) from '@nexus\/slices'/, 'const $1 = slices')
    .replace('using enforcer', 'const enforcer')
    .concat('\nenforcer.dispose()')
  const said: unknown[] = []
  new Function('slices', 'console', body)(slices, { log: (...words: unknown[]) => said.push(...words) })
  expect(['hardware', 'cooperative']).toContain(said[0])
  expect(said[1]).not.toBe('')
})
