/** Expert MLPs in float64: one linear layer after the other, one row at a time. */
import type { Activation, MlpSpec } from '../../src/index.js'

const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v))
/** erf by its Maclaurin series where that converges fast, by a continued fraction of erfc beyond: to about 1e-15. */
export function erf(x: number): number {
  const a = Math.abs(x)
  if (a > 3) {
    let f = 0
    for (let n = 60; n > 0; n--) f = n / 2 / (a + f)
    return Math.sign(x) * (1 - Math.exp(-a * a) / ((a + f) * Math.sqrt(Math.PI)))
  }
  let term = x
  let sum = x
  for (let n = 1; n < 100; n++) {
    term *= (-x * x) / n
    sum += term / (2 * n + 1)
  }
  return (2 / Math.sqrt(Math.PI)) * sum
}
const silu = (v: number): number => v * sigmoid(v)
const relu = (v: number): number => Math.max(v, 0)
const gelu = (v: number): number => 0.5 * v * (1 + erf(v / Math.SQRT2))
const geluTanh = (v: number): number => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)))

const plain: Partial<Record<Activation, (v: number) => number>> = { relu, gelu, 'gelu-tanh': geluTanh, silu }
const gates: Partial<Record<Activation, (v: number) => number>> = {
  swiglu: silu,
  geglu: gelu,
  'geglu-tanh': geluTanh,
  reglu: relu,
}

function activated(mlp: Pick<MlpSpec, 'activation' | 'limit' | 'alpha'>, row: readonly number[]): number[] {
  const elementwise = plain[mlp.activation]
  if (elementwise) return row.map(elementwise)
  const gate = gates[mlp.activation]
  return Array.from({ length: row.length / 2 }, (_, i) => {
    const g = row[2 * i] ?? Number.NaN
    const up = row[2 * i + 1] ?? Number.NaN
    if (gate) return gate(g) * up
    const clamped = Math.min(g, mlp.limit)
    return clamped * sigmoid(mlp.alpha * clamped) * (Math.max(-mlp.limit, Math.min(up, mlp.limit)) + 1)
  })
}

/** One row through one expert. `weights[i]` is [experts, rows, columns] of linear layer i, `biases[i]` [experts, rows] or null. */
export function mlpOracle(
  mlp: MlpSpec,
  weights: readonly Float32Array[],
  biases: readonly (Float32Array | null)[],
  expert: number,
  row: ArrayLike<number>,
  /** Llama-4: times the first product, before its bias. */
  inputScale = 1,
): number[] {
  let values = Array.from(row)
  for (const [i, weight] of weights.entries()) {
    const columns = values.length
    const rows = weight.length / mlp.numExperts / columns
    const bias = biases[i] ?? null
    const scale = i === 0 ? inputScale : 1
    const product = Array.from({ length: rows }, (_, n) => {
      let sum = 0
      const at = (expert * rows + n) * columns
      for (let k = 0; k < columns; k++) sum += (values[k] ?? 0) * (weight[at + k] ?? Number.NaN)
      return sum * scale + (bias?.[expert * rows + n] ?? 0)
    })
    values = i === weights.length - 1 ? product : activated(mlp, product)
  }
  return values
}
