// The policy that docs/slices.md shows is one.
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { type AllocationPolicy, arrange, conformance } from '../src/index.js'

test('the documented policy has ten lines, and conforms', () => {
  const text = readFileSync(new URL('../../../docs/slices.md', import.meta.url), 'utf8')
  const [, code = ''] = /<!-- own policy -->\s*```js\n([\s\S]*?)```/.exec(text) ?? []
  expect(code.split('\n').filter((line) => line.trim() !== '').length).toBeLessThanOrEqual(10)
  const body = code.replace("import { arrange } from '@nexus/slices'", '').replace('export const cautious =', 'return')
  const policy = new Function('arrange', body)(arrange) as AllocationPolicy
  expect(policy.name).toBe('cautious')
  expect(conformance(policy)).toEqual([])
})
