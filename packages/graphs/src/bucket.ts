/**
 * Token buckets: a step of n tokens is laid out, recorded and given its kernel variants for the least bucket of at least n, eager and
 * recorded alike. So one graph serves every number of tokens up to its bucket, with the same bits. The same rule as `token_bucket` of the
 * native layer; a test holds them against each other.
 */
import { checkInteger } from '@nexus/native'

/** The buckets up to 256; beyond, two a doubling: 384, 512, 768, 1024, … */
const small = [0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256] as const

/**
 * The least bucket of at least `tokens`: 0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, then 1.5 and 2 times each power of two.
 * @param tokens 0 to 2^31 - 1
 * @throws TypeError, RangeError naming `tokens`
 */
export function tokenBucket(tokens: number): number {
  checkInteger('tokens', tokens, 0, 2 ** 31 - 1)
  if (tokens <= 256) {
    for (const bucket of small) if (tokens <= bucket) return bucket
  }
  // 2^(31 - clz(n - 1)) is the largest power of two below n.
  const below = 2 ** (31 - Math.clz32(tokens - 1))
  return tokens <= 1.5 * below ? 1.5 * below : 2 * below
}
