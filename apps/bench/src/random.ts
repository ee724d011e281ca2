/** Seeded random numbers: normal deviates for router logits that ours and the peers read alike, and the uniform ones beneath. */

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

/** Uniform, then Box-Muller. */
export function normals(n: number, seed: number): Float32Array {
  const uniform = uniforms(seed)
  const out = new Float32Array(n)
  for (let i = 0; i < n; i += 2) {
    const r = Math.sqrt(-2 * Math.log(uniform()))
    const a = 2 * Math.PI * uniform()
    out[i] = r * Math.cos(a)
    if (i + 1 < n) out[i + 1] = r * Math.sin(a)
  }
  return out
}

/** A cell's bias of the experts' logits: normal with standard deviation `skew`, the same for all of its inputs. */
export const cellBias = (experts: number, skew: number, seed: number): Float32Array =>
  normals(experts, seed + 1).map((each) => skew * each)

/** One cell's logits: unit normal, plus one bias per expert of standard deviation `skew` that all inputs share. */
export function cellLogits(tokens: number, experts: number, count: number, skew: number, seed: number): Float32Array[] {
  const bias = normals(experts, seed + 1)
  return Array.from({ length: count }, (_, v) => {
    const logits = normals(tokens * experts, seed + 1000 * (v + 1))
    if (skew > 0) for (let i = 0; i < logits.length; i++) logits[i] = (logits[i] ?? 0) + skew * (bias[i % experts] ?? 0)
    return logits
  })
}
