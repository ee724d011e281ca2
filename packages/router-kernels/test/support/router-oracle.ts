/** The routing rules in float64, written for reading: the specification that every kernel is held to (kernels/include/nexus/router.h). */
import type { RouterRule } from '../../src/index.js'

const floatMax = 3.4028234663852886e38
const { fround } = Math

export interface RoutingOracle {
  readonly ids: Int32Array
  readonly weights: Float64Array
  readonly counts: Int32Array
  readonly offsets: Int32Array
  readonly order: Int32Array
}

function sanitised(l: number): number {
  if (Number.isNaN(l) || l === Number.NEGATIVE_INFINITY) return -floatMax
  return l === Number.POSITIVE_INFINITY ? floatMax : l
}
const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v))
function softmax(l: readonly number[]): number[] {
  const max = Math.max(...l)
  const e = l.map((v) => Math.exp(v - max))
  const sum = e.reduce((a, b) => a + b, 0)
  return e.map((v) => v / sum)
}
const pick = (values: readonly number[], i: number): number => values[i] ?? Number.NaN
/** Indices by descending value, ties to the lower index. */
const ranked = (values: readonly number[]): number[] =>
  values.map((_, i) => i).sort((a, b) => pick(values, b) - pick(values, a) || a - b)

/** The keys by which experts are chosen. */
function keysOf(
  rule: RouterRule,
  l: readonly number[],
  p: readonly number[],
  bias: ArrayLike<number> | null,
): readonly number[] {
  return bias === null && rule.groups?.by !== 'top2-sum' ? l : p.map((v, e) => v + (bias?.[e] ?? 0))
}

/** Keys and group values are of order 1: float32 holds them, and a product that makes them, to about 1e-7. */
const near = 1e-6

/**
 * The exact choice first; where the values of the last group that stays and the first that goes are within rounding, also the one
 * with those two exchanged.
 */
function choices(rule: RouterRule, keys: readonly number[]): number[][] {
  if (!rule.groups) return [ranked(keys).slice(0, rule.topK)]
  const { count, keep, by } = rule.groups
  const size = keys.length / count
  const values = Array.from({ length: count }, (_, g) => {
    const best = keys.slice(g * size, (g + 1) * size).sort((a, b) => b - a)
    return by === 'max' ? pick(best, 0) : pick(best, 0) + (best[1] ?? 0)
  })
  const order = ranked(values)
  const [last = -1, next = -1] = order.slice(keep - 1, keep + 1)
  const kept = [new Set(order.slice(0, keep))]
  if (keep < count && Math.abs(pick(values, last) - pick(values, next)) <= near) {
    kept.push(new Set([...order.slice(0, keep - 1), next]))
  }
  return kept.map((groups) =>
    ranked(keys)
      .filter((e) => groups.has(Math.floor(e / size)))
      .slice(0, rule.topK),
  )
}

/** `got` where rounding can have made it: distinct experts, in each slot a key as good as an exact choice has there. Else the exact one. */
function accepted(rule: RouterRule, keys: readonly number[], got: readonly number[]): number[] {
  const exact = choices(rule, keys)
  const asGood = (choice: number[]): boolean =>
    choice.every((e, j) => {
      const [k, g] = [pick(keys, e), pick(keys, pick(got, j))]
      return k === g ? e === got[j] : Math.abs(k - g) <= near * Math.max(1, Math.abs(k))
    })
  const possible = got.length === rule.topK && new Set(got).size === rule.topK && exact.some(asGood)
  return possible ? [...got] : (exact[0] ?? [])
}

function sparsemixer(l: readonly number[], chosen: readonly number[], jitter: number): number[] {
  const picked = new Set<number>()
  return chosen.map((e) => {
    const m = pick(l, e)
    let sum = 0
    for (const [i, v] of l.entries()) {
      if (picked.has(i)) continue
      // A step: in float32, as the kernels have it, since the two sides of it differ by much.
      const masked = fround(fround(m - v) / fround(Math.max(Math.abs(v), m))) > fround(2 * fround(jitter))
      if (!masked) sum += Math.exp(v - m)
    }
    picked.add(e)
    return 1 / sum
  })
}

function weigh(rule: RouterRule, l: readonly number[], p: readonly number[], chosen: readonly number[]): number[] {
  const chosenLogits = chosen.map((e) => pick(l, e))
  switch (rule.weigh ?? 'score') {
    case 'score':
      return chosen.map((e) => pick(p, e))
    case 'softmax-chosen':
      return softmax(chosenLogits)
    case 'sigmoid-chosen':
      return chosenLogits.map(sigmoid)
    case 'sparsemixer':
      return sparsemixer(l, chosen, rule.jitter ?? 0.01)
  }
}

function normalized(rule: RouterRule, w: readonly number[]): number[] {
  const { normalize = 'sum', epsilon = 0, scale = 1 } = rule
  const sum = w.reduce((a, b) => a + b, 0)
  const divisor = normalize === 'none' ? 1 : normalize === 'sum' ? sum + epsilon : Math.max(sum, epsilon)
  return w.map((v) => (v / divisor) * scale)
}

/**
 * @param got the experts that were chosen: near ties may fall either way in float32, so a token's choice that differs by rounding alone
 * takes the place of the exact one; any other is ignored
 */
export function routeOracle(
  rule: RouterRule,
  logits: ArrayLike<number>,
  tokens: number,
  selectBias: ArrayLike<number> | null = null,
  got: ArrayLike<number> = [],
): RoutingOracle {
  const { numExperts, topK, score = 'softmax' } = rule
  const ids = new Int32Array(tokens * topK)
  const weights = new Float64Array(tokens * topK)
  for (let t = 0; t < tokens; t++) {
    const l = Array.from({ length: numExperts }, (_, e) => sanitised(logits[t * numExperts + e] ?? Number.NaN))
    const p = score === 'softmax' ? softmax(l) : score === 'sigmoid' ? l.map(sigmoid) : l
    const own = Array.from(got).slice(t * topK, (t + 1) * topK)
    const chosen = accepted(rule, keysOf(rule, l, p, selectBias), own)
    ids.set(chosen, t * topK)
    weights.set(normalized(rule, weigh(rule, l, p, chosen)), t * topK)
  }
  return { ids, weights, ...bucketsOracle(ids, numExperts) }
}

/** Counts, their exclusive prefix sum, and the slots stably sorted by expert. */
export function bucketsOracle(ids: ArrayLike<number>, numExperts: number) {
  const slots = Array.from({ length: ids.length }, (_, i) => i)
  const expert = (slot: number): number => ids[slot] ?? -1
  const counts = new Int32Array(numExperts)
  for (const slot of slots) counts[expert(slot)] = (counts[expert(slot)] ?? 0) + 1
  const offsets = new Int32Array(numExperts + 1)
  for (let e = 0; e < numExperts; e++) offsets[e + 1] = (offsets[e] ?? 0) + (counts[e] ?? 0)
  return { counts, offsets, order: Int32Array.from(slots.sort((a, b) => expert(a) - expert(b) || a - b)) }
}

/** logits[t, e] = Σ x[t, h]·weight[e, h] + bias[e]. */
export function logitsOracle(
  x: Float32Array,
  weight: Float32Array,
  bias: Float32Array | null,
  tokens: number,
  experts: number,
): Float64Array {
  const hidden = weight.length / experts
  return Float64Array.from({ length: tokens * experts }, (_, i) => {
    const t = Math.floor(i / experts)
    const e = i % experts
    let sum = bias?.[e] ?? 0
    for (let h = 0; h < hidden; h++) sum += (x[t * hidden + h] ?? 0) * (weight[e * hidden + h] ?? 0)
    return sum
  })
}
