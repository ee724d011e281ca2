/** The figures of a load, as functions of counts. `null` where there is nothing to measure. */

function sum(counts: ArrayLike<number>): number {
  let total = 0
  for (let i = 0; i < counts.length; i++) total += counts[i] ?? 0
  return total
}

/**
 * Largest over mean count, max_e n_e / (N / E): how much longer the busiest expert works than in an even load.
 * @param counts - assignments per expert
 * @returns 1 (even) to E (all on one expert); `null` when all counts are 0
 */
export function loadImbalance(counts: ArrayLike<number>): number | null {
  const total = sum(counts)
  if (total === 0) return null
  let largest = 0
  for (let i = 0; i < counts.length; i++) largest = Math.max(largest, counts[i] ?? 0)
  return (largest * counts.length) / total
}

/**
 * Shannon entropy of the shares p_e = n_e / N over that of the even load, -Σ p_e ln p_e / ln E.
 * @param counts - assignments per expert
 * @returns 0 (all on one expert) to 1 (even; also for a single expert); `null` when all counts are 0
 */
export function normalizedEntropy(counts: ArrayLike<number>): number | null {
  const total = sum(counts)
  if (total === 0) return null
  if (counts.length === 1) return 1
  let entropy = 0
  for (let i = 0; i < counts.length; i++) {
    const p = (counts[i] ?? 0) / total
    if (p > 0) entropy -= p * Math.log(p)
  }
  return Math.min(1, Math.max(0, entropy / Math.log(counts.length)))
}

/**
 * Total-variation distance of two loads, ½ Σ_e |p_e - q_e| with p and q the shares: the part of the assignments that would
 * have to move from one expert to another to make them equal.
 * @param a - assignments per expert
 * @param b - assignments per expert, as many
 * @returns 0 (same shares) to 1 (no expert in common); `null` when either load is empty
 */
export function totalVariation(a: ArrayLike<number>, b: ArrayLike<number>): number | null {
  if (a.length !== b.length) throw new RangeError(`b: expected ${a.length} counts as a has, got ${b.length}`)
  const totalA = sum(a)
  const totalB = sum(b)
  if (totalA === 0 || totalB === 0) return null
  let distance = 0
  for (let i = 0; i < a.length; i++) distance += Math.abs((a[i] ?? 0) / totalA - (b[i] ?? 0) / totalB)
  return Math.min(1, distance / 2)
}
