import { describe, expect, test } from 'vitest'
import { uniforms } from '../src/random.js'
import { medianInterval, quantile, ratioOfMedians } from '../src/scheduling/statistics.js'

const oneTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

describe('the 95 % interval of a median', () => {
  test('is the pair of order statistics that the binomial distribution says', () => {
    // Published ranks for 95 %: 6: 1 and 6, 10: 2 and 9, 15: 4 and 12, 20: 6 and 15, 100: 40 and 61.
    expect(medianInterval(oneTo(6))).toEqual([1, 6])
    expect(medianInterval(oneTo(10))).toEqual([2, 9])
    expect(medianInterval(oneTo(15))).toEqual([4, 12])
    expect(medianInterval(oneTo(20).reverse())).toEqual([6, 15])
    expect(medianInterval(oneTo(100))).toEqual([40, 61])
  })
  test('is the whole range of fewer than six values, and null of none', () => {
    expect(medianInterval([3, 1, 2, 5, 4])).toEqual([1, 5])
    expect(medianInterval([7])).toEqual([7, 7])
    expect(medianInterval([])).toBeNull()
  })
  test('holds the true median in 95 % of samples, and little more', () => {
    const uniform = uniforms(3)
    const n = 25
    let held = 0
    const trials = 4000
    for (let t = 0; t < trials; t++) {
      const interval = medianInterval(Array.from({ length: n }, () => uniform() ** 3))
      if (interval && interval[0] <= 0.125 && 0.125 <= interval[1]) held++
    }
    expect(held / trials).toBeGreaterThanOrEqual(0.945)
    expect(held / trials).toBeLessThan(0.975)
  })
  test('does not underflow for thousands of values', () => {
    const [low, high] = medianInterval(oneTo(4000)) ?? []
    // 2000 ± 1.96 · √4000 / 2
    expect(low).toBeGreaterThan(1935)
    expect(high).toBeLessThan(2066)
    expect(low).toBeLessThan(1941)
  })
})

test('quantiles interpolate', () => {
  expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5)
  expect(quantile([], 0.5)).toBeNaN()
})

test('a ratio of medians has its interval, and refuses samples that are no pairs', () => {
  const { ratio, low, high, pairs } = ratioOfMedians([2, 4, 6], [1, 2, 3])
  expect([ratio, pairs]).toEqual([2, 3])
  expect(low).toBeLessThanOrEqual(2)
  expect(high).toBeGreaterThanOrEqual(2)
  expect(() => ratioOfMedians([1], [])).toThrow(/pairs/)
})
