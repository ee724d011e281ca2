/** Comparisons of outputs and of choices, in float64. */

/** ‖actual - expected‖ / ‖expected‖ over all elements (Frobenius); infinite when a value is not finite. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length)
    throw new RangeError(`actual: expected ${expected.length} values, got ${actual.length}`)
  let difference = 0
  let norm = 0
  for (let i = 0; i < expected.length; i++) {
    const e = expected[i] ?? 0
    const d = (actual[i] ?? Number.NaN) - e
    difference += d * d
    norm += e * e
  }
  if (!Number.isFinite(difference)) return Number.POSITIVE_INFINITY
  return norm === 0 ? (difference === 0 ? 0 : Number.POSITIVE_INFINITY) : Math.sqrt(difference / norm)
}

/** Largest |actual - expected|; infinite when a value is not finite. */
export function maxAbsoluteError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let largest = 0
  for (let i = 0; i < expected.length; i++) {
    const d = Math.abs((actual[i] ?? Number.NaN) - (expected[i] ?? 0))
    if (!Number.isFinite(d)) return Number.POSITIVE_INFINITY
    largest = Math.max(largest, d)
  }
  return largest
}

/** Tokens whose chosen experts differ as sets; the order within a token is the router's own affair. */
export function differingChoices(actual: ArrayLike<number>, expected: ArrayLike<number>, topK: number): number {
  if (actual.length !== expected.length)
    throw new RangeError(`actual: expected ${expected.length} experts, got ${actual.length}`)
  let differing = 0
  for (let t = 0; t < expected.length; t += topK) {
    const slots = Array.from({ length: topK }, (_, j) => t + j)
    const chosen = new Set(slots.map((s) => actual[s]))
    if (chosen.size !== topK || slots.some((s) => !chosen.has(expected[s]))) differing++
  }
  return differing
}
