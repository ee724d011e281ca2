/** Seeded unit-scale data, rounding to the narrow dtypes, and the error measure of all comparisons. */
import type { DType } from '@nexus/native'

/** Fresh on every run; `NEXUS_TEST_SEED` repeats one. */
export const testSeed = Number(process.env.NEXUS_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31))

/** mulberry32: uniform in (0, 1]. */
export function generator(seed: number): () => number {
  let state = (seed ^ testSeed) >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (((t ^ (t >>> 14)) >>> 0) + 1) / 2 ** 32
  }
}

/** Normal deviates times `scale`, rounded to the dtype. */
export function normal(seed: number, size: number, scale = 1, dtype: DType = 'f32'): Float32Array {
  const uniform = generator(seed)
  const data = new Float32Array(size)
  for (let i = 0; i < size; i++) {
    data[i] = scale * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
  }
  return rounded(data, dtype)
}

/** To the nearest value that the dtype has, ties to even. */
export function rounded(data: Float32Array, dtype: DType): Float32Array {
  if (dtype === 'f32') return data
  const [precision, leastExponent] = dtype === 'bf16' ? [7, -126] : [10, -14]
  return data.map((v) => {
    if (v === 0) return v
    const exponent = Math.max(Math.floor(Math.log2(Math.abs(v))), leastExponent)
    const quantum = 2 ** (exponent - precision)
    const n = v / quantum
    const floor = Math.floor(n)
    const rest = n - floor
    const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0)
    return (floor + (up ? 1 : 0)) * quantum
  })
}

/** ‖got − expected‖ / ‖expected‖ (Frobenius); the plain norm of `got` where nothing is expected. Infinite when sizes differ or a NaN came. */
export function relativeError(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY
  let difference = 0
  let norm = 0
  for (let i = 0; i < expected.length; i++) {
    const e = expected[i] ?? Number.NaN
    difference += ((got[i] ?? Number.NaN) - e) ** 2
    norm += e * e
  }
  const error = norm === 0 ? Math.sqrt(difference) : Math.sqrt(difference / norm)
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error
}

/** What a float32 computation, or one that stores the dtype between its steps, may be off by. */
export const tolerance = { f32: 1e-5, bf16: 1e-2, f16: 1e-2, i32: 0 } as const satisfies Record<DType, number>
