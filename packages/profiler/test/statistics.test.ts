import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { loadImbalance, normalizedEntropy, totalVariation } from '../src/index.js'

const loads = (length: number) => fc.array(fc.nat(10_000), { minLength: length, maxLength: length })
const pair = fc.integer({ min: 1, max: 40 }).chain((n) => fc.tuple(loads(n), loads(n), loads(n)))
const isEmpty = (counts: readonly number[]) => counts.every((n) => n === 0)

describe('load imbalance: largest over mean', () => {
  test('1 when even, E when all on one, null when empty', () => {
    expect(loadImbalance([5, 5, 5, 5])).toBe(1)
    expect(loadImbalance([0, 12, 0, 0])).toBe(4)
    expect(loadImbalance([1, 2, 3])).toBe(1.5)
    expect(loadImbalance([0, 0])).toBeNull()
    expect(loadImbalance([])).toBeNull()
  })
  test('lies between 1 and E, and does not depend on the scale', () => {
    fc.assert(
      fc.property(pair, ([counts]) => {
        fc.pre(!isEmpty(counts))
        const value = loadImbalance(counts) ?? Number.NaN
        expect(value).toBeGreaterThanOrEqual(1)
        expect(value).toBeLessThanOrEqual(counts.length * (1 + 1e-12))
        expect(loadImbalance(counts.map((n) => 8 * n))).toBeCloseTo(value, 9)
      }),
    )
  })
})

describe('normalised entropy', () => {
  test('0 when all on one, 1 when even, by hand between', () => {
    expect(normalizedEntropy([0, 9, 0])).toBe(0)
    expect(normalizedEntropy([7, 7, 7])).toBeCloseTo(1, 12)
    expect(normalizedEntropy([1, 1, 2, 0])).toBeCloseTo(1.5 / 2, 12)
    expect(normalizedEntropy([3])).toBe(1)
    expect(normalizedEntropy([0, 0])).toBeNull()
  })
  test('lies in [0, 1] and does not depend on the order', () => {
    fc.assert(
      fc.property(pair, ([counts]) => {
        fc.pre(!isEmpty(counts))
        const value = normalizedEntropy(counts) ?? Number.NaN
        expect(value).toBeGreaterThanOrEqual(0)
        expect(value).toBeLessThanOrEqual(1)
        expect(normalizedEntropy([...counts].reverse())).toBeCloseTo(value, 9)
      }),
    )
  })
})

describe('total-variation distance', () => {
  test('0 for the same shares, 1 for disjoint ones, by hand between', () => {
    expect(totalVariation([1, 3], [2, 6])).toBe(0)
    expect(totalVariation([4, 0], [0, 1])).toBe(1)
    expect(totalVariation([1, 1], [3, 1])).toBe(0.25)
    expect(totalVariation([0, 0], [1, 1])).toBeNull()
    expect(() => totalVariation([1], [1, 2])).toThrow(/b: expected 1 counts as a has, got 2/)
  })
  test('is a metric on shares: symmetric, in [0, 1], triangle inequality', () => {
    fc.assert(
      fc.property(pair, ([a, b, c]) => {
        fc.pre(!isEmpty(a) && !isEmpty(b) && !isEmpty(c))
        const ab = totalVariation(a, b) ?? Number.NaN
        const bc = totalVariation(b, c) ?? Number.NaN
        const ac = totalVariation(a, c) ?? Number.NaN
        expect(ab).toBeGreaterThanOrEqual(0)
        expect(ab).toBeLessThanOrEqual(1)
        expect(totalVariation(b, a)).toBeCloseTo(ab, 12)
        expect(ac).toBeLessThanOrEqual(ab + bc + 1e-12)
      }),
    )
  })
})
