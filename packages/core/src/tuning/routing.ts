/** Which expert gets which rows, for measurements: seeded, even over the experts or skewed. */

/** Slots sorted by expert, as the router leaves them. */
export interface Routing {
  /** [numExperts + 1] */
  readonly offsets: Int32Array
  /** [tokens·topK] */
  readonly order: Int32Array
}

/** SplitMix32: uniform in (0, 1). */
export function uniforms(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x9e3779b9) >>> 0
    let z = state
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b)
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
    return ((z ^ (z >>> 16)) >>> 0) / 4294967296 + 1 / 8589934592
  }
}

/** Standard normal numbers. */
function normals(seed: number): () => number {
  const uniform = uniforms(seed)
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
}

/** What is added to each expert's unit-normal scores: normal of standard deviation `skew`; those of `routings` with the same seed. */
export function expertBiases(numExperts: number, skew: number, seed: number): Float32Array {
  return Float32Array.from(biases(numExperts, skew, normals(seed)))
}

const biases = (numExperts: number, skew: number, normal: () => number): Float64Array =>
  Float64Array.from({ length: numExperts }, () => skew * normal())

/**
 * Each token's `topK` best of random scores: standard normal ones plus, for each expert, one bias of standard deviation `skew` that all
 * `count` routings share. 0: every expert is as likely as any other.
 */
export function routings(
  shape: { readonly tokens: number; readonly numExperts: number; readonly topK: number },
  skew: number,
  count: number,
  seed: number,
): readonly Routing[] {
  const normal = normals(seed)
  const bias = biases(shape.numExperts, skew, normal)
  return Array.from({ length: count }, () => routing(shape, bias, normal))
}

function routing(
  { tokens, numExperts, topK }: { readonly tokens: number; readonly numExperts: number; readonly topK: number },
  bias: Float64Array,
  normal: () => number,
): Routing {
  const slots = tokens * topK
  const expertOf = new Int32Array(slots)
  const offsets = new Int32Array(numExperts + 1)
  const score = new Float64Array(numExperts)
  for (let token = 0; token < tokens; token++) {
    for (let e = 0; e < numExperts; e++) score[e] = (bias[e] ?? 0) + normal()
    for (let j = 0; j < topK; j++) {
      let best = 0
      for (let e = 1; e < numExperts; e++) if ((score[e] ?? 0) > (score[best] ?? 0)) best = e
      score[best] = Number.NEGATIVE_INFINITY
      expertOf[token * topK + j] = best
      offsets[best + 1] = (offsets[best + 1] ?? 0) + 1
    }
  }
  for (let e = 0; e < numExperts; e++) offsets[e + 1] = (offsets[e + 1] ?? 0) + (offsets[e] ?? 0)
  const next = offsets.slice(0, numExperts)
  const order = new Int32Array(slots)
  for (let slot = 0; slot < slots; slot++) {
    const expert = expertOf[slot] ?? 0
    const at = next[expert] ?? 0
    order[at] = slot
    next[expert] = at + 1
  }
  return { offsets, order }
}
