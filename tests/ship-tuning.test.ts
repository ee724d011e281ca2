/** What of a tune file comes with the package. */
import { expect, test } from 'vitest'
import { sourceText, worthShipping } from '../scripts/ship-tuning.mjs'

const times = { a: 2, b: 1, c: 3 }
const rows = [
  { rows: 2, variants: ['b', 'a', 'c'], heuristic: 'a', evenUs: times, skewedUs: times },
  { rows: 16, variants: ['a', 'b', 'c'], heuristic: 'a', evenUs: times, skewedUs: times },
]
const file = {
  schema: 'nexus-tune/1',
  deviceClass: 'sm_90/132',
  source: 'tune, just now',
  linears: [{ n: 1, order: null, rows }],
}

test('only choices that are not the heuristic’s, with the times of those two, and the source', () => {
  const two = { a: 2, b: 1 }
  expect(worthShipping(file, 'docs/kernels/log.md, entry 9')).toEqual({
    ...file,
    source: 'docs/kernels/log.md, entry 9',
    linears: [{ n: 1, order: null, rows: [{ rows: 2, variants: ['b'], heuristic: 'a', evenUs: two, skewedUs: two }] }],
  })
})

test('a layer of which nothing is left stays out, one with an order of sums stays in', () => {
  const own = [rows[1]]
  const linears = [
    { n: 1, order: null, rows: own },
    { n: 2, order: 'mma16', rows: own },
  ]
  expect(worthShipping({ ...file, linears }, 's').linears).toEqual([{ n: 2, order: 'mma16', rows: [] }])
})

test('something else is refused; what is written is a module', () => {
  expect(() => worthShipping({ schema: 'other' }, 's')).toThrow('expected a tune file, got schema "other"')
  expect(sourceText([])).toMatch(/export const shipped: readonly TuneFile\[\] = \[\]\n$/)
})
