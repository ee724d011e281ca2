/** Float32 values of all kinds for property tests, by a small generator of their own (mulberry32). */
export function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (t ^ (t >>> 14)) >>> 0
  }
}

const special = [
  0,
  -0,
  1,
  -1,
  Infinity,
  -Infinity,
  NaN,
  65504,
  65519.99,
  65520,
  6.1e-5,
  5.96e-8,
  2.98e-8,
  2.99e-8,
  3.4e38,
  1e-45,
]

/** `n` floats: the special ones first, then random bit patterns, then values in the range of float16. */
export function anyFloats(n: number, seed: number): Float32Array {
  const next = generator(seed)
  const values = new Float32Array(n)
  const bits = new Uint32Array(values.buffer)
  for (let i = 0; i < n; i++) {
    const value = special[i]
    if (value !== undefined) values[i] = value
    else if (i % 2 === 0) bits[i] = next()
    else values[i] = (next() / 2 ** 31 - 1) * 2 ** (16 - (next() % 42))
  }
  return values
}
