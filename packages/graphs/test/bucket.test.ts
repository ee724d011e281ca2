// Token buckets: the rule in words, and the same as the native layer's.
import { systemInfo } from '@nexus/native'
import { binding } from '@nexus/native/binding'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { tokenBucket } from '../src/index.js'

const listed = [0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]

/** The native rule; `null` where there is no addon, or one of before the rule. */
function nativeBucket(): ((tokens: number) => number) | null {
  if (systemInfo().machine === null) return null
  const { tokenBucket: rule } = binding().core
  return typeof rule === 'function' ? rule : null
}

describe('token buckets', () => {
  test('are the least listed number of at least as many tokens', () => {
    for (let n = 0; n <= 4096; n++) expect(tokenBucket(n), `${n}`).toBe(listed.find((bucket) => bucket >= n))
  })
  test('hold the tokens, are buckets of their own, and grow with the tokens', () => {
    const tokens = fc.integer({ min: 0, max: 2 ** 31 - 1 })
    fc.assert(
      fc.property(tokens, tokens, (a, b) => {
        const bucket = tokenBucket(a)
        expect(bucket).toBeGreaterThanOrEqual(a)
        if (bucket < 2 ** 31) expect(tokenBucket(bucket)).toBe(bucket)
        expect(tokenBucket(Math.min(a, b))).toBeLessThanOrEqual(tokenBucket(Math.max(a, b)))
        // At most a third is padding beyond 16, where buckets are three to a doubling or more.
        if (a > 16) expect(bucket).toBeLessThan(1.5 * a)
      }),
    )
  })
  test.skipIf(nativeBucket() === null)("are the native layer's", () => {
    const native = nativeBucket() ?? (() => Number.NaN)
    for (let n = 0; n <= 5000; n++) expect(tokenBucket(n), `${n}`).toBe(native(n))
    for (let power = 12; power < 31; power++) {
      for (const n of [2 ** power - 1, 2 ** power, 2 ** power + 1, 1.5 * 2 ** power, 1.5 * 2 ** power + 1]) {
        expect(tokenBucket(n), `${n}`).toBe(native(n))
      }
    }
  })
  test('of what is no number of tokens are refused', () => {
    expect(() => tokenBucket(-1)).toThrow(/tokens: expected an integer from 0 to 2147483647, got -1/)
    expect(() => tokenBucket(1.5)).toThrow(RangeError)
    expect(() => tokenBucket('1' as never)).toThrow(TypeError)
  })
})
