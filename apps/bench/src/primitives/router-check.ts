/** What a router's result must be: the choice and weights in float64, and buckets that are a stable counting sort of it. */
import type { RoutedTokens } from '@nexus/core'
import { choose } from '../float64.js'

/** Logits that differ by less than this may tie in float32. */
const tie = 1e-6

/**
 * Counts, offsets and order are checked in full, choice and weights on every token.
 * @param logits [tokens, experts] that were routed
 * @returns the largest difference of a weight to float64
 * @throws RangeError naming the token or expert
 */
export async function checkRouted(routed: RoutedTokens, logits: Float32Array): Promise<number> {
  const { tokens, topK, numExperts } = routed
  const ids = await routed.expertIds.toArray()
  const weights = await routed.weights.toFloat32Array()
  const counts = await routed.counts.toArray()
  const offsets = await routed.offsets.toArray()
  const order = await routed.order.toArray()
  const wrong = (what: string): never => {
    throw new RangeError(`the routing is wrong: ${what}`)
  }
  let worst = 0
  for (let t = 0; t < tokens; t++) {
    const own = logits.subarray(t * numExperts, (t + 1) * numExperts)
    for (const [j, { expert, weight }] of choose(own, topK).entries()) {
      const got = ids[t * topK + j] ?? -1
      if (got !== expert && !(Math.abs((own[got] ?? Number.NaN) - (own[expert] ?? 0)) <= tie)) {
        wrong(`token ${t} chose expert ${got}, expected ${expert}`)
      }
      const off = Math.abs((weights[t * topK + j] ?? Number.NaN) - weight)
      if (!(off <= 1e-5)) wrong(`token ${t}: weight ${weights[t * topK + j]}, expected ${weight}`)
      worst = Math.max(worst, off)
    }
  }
  const buckets = Array.from({ length: numExperts }, (): number[] => [])
  for (let slot = 0; slot < tokens * topK; slot++) buckets[ids[slot] ?? -1]?.push(slot)
  let at = 0
  for (const [expert, slots] of buckets.entries()) {
    if (counts[expert] !== slots.length || offsets[expert] !== at) wrong(`the count or offset of expert ${expert}`)
    for (const slot of slots) if (order[at++] !== slot) wrong(`the order of expert ${expert}'s slots`)
  }
  if (offsets[numExperts] !== at || at !== tokens * topK) wrong(`${at} slots, expected ${tokens * topK}`)
  return worst
}
