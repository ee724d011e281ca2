/**
 * Nonlinear least squares in a box, without a library: Levenberg and Marquardt's steps with derivatives by differences. Variables are in [0, 1]; one
 * that stands at an end and would leave it is held for that step. Deterministic: same residuals, same result.
 */

export interface Fit {
  readonly x: readonly number[]
  /** Sum of the squared residuals. */
  readonly loss: number
}

const sumOfSquares = (values: ArrayLike<number>) => {
  let sum = 0
  for (let i = 0; i < values.length; i++) sum += (values[i] ?? 0) ** 2
  return sum
}
const clamp = (value: number) => Math.min(1, Math.max(0, value))

/**
 * @param residuals of the variables; as many numbers at every call
 * @param start in [0, 1]
 * @param iterations at most
 */
export function leastSquares(
  residuals: (x: readonly number[]) => Float64Array,
  start: readonly number[],
  iterations: number,
): Fit {
  let x = start.map(clamp)
  let r = residuals(x)
  let loss = sumOfSquares(r)
  let damping = 1e-2
  for (let i = 0; i < iterations; i++) {
    const columns = x.map((value, p) => {
      const h = value > 0.5 ? -1e-5 : 1e-5
      const moved = residuals(x.with(p, value + h))
      return moved.map((m, k) => (m - (r[k] ?? 0)) / h)
    })
    const gradient = columns.map((column) => dot(column, r))
    const free = x.map(
      (value, p) => !((value <= 0 && (gradient[p] ?? 0) > 0) || (value >= 1 && (gradient[p] ?? 0) < 0)),
    )
    let better = false
    for (let attempt = 0; attempt < 12 && !better; attempt++) {
      const step = solve(columns, gradient, free, damping)
      const next = x.map((value, p) => clamp(value - (step[p] ?? 0)))
      const nextR = residuals(next)
      const nextLoss = sumOfSquares(nextR)
      if (nextLoss < loss) {
        better = true
        damping = Math.max(1e-9, damping / 4)
        const gained = 1 - nextLoss / loss
        x = next
        r = nextR
        loss = nextLoss
        if (gained < 1e-7) return { x, loss }
      } else damping *= 4
    }
    if (!better) break
  }
  return { x, loss }
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += (a[i] ?? 0) * (b[i] ?? 0)
  return sum
}

/** (JᵀJ + damping · (diag JᵀJ + ε)) step = gradient, for the free variables; 0 for the others. */
function solve(
  columns: readonly Float64Array[],
  gradient: readonly number[],
  free: readonly boolean[],
  damping: number,
): number[] {
  const n = columns.length
  const rows = columns.map((a, i) =>
    columns.map((b, j) => {
      if (!free[i] || !free[j]) return i === j ? 1 : 0
      const product = dot(a, b)
      return i === j ? product * (1 + damping) + damping * 1e-6 + 1e-12 : product
    }),
  )
  const right = gradient.map((g, i) => (free[i] ? g : 0))
  // Gauss with the largest pivot of the column.
  for (let k = 0; k < n; k++) {
    let pivot = k
    for (let i = k + 1; i < n; i++) if (Math.abs(rows[i]?.[k] ?? 0) > Math.abs(rows[pivot]?.[k] ?? 0)) pivot = i
    ;[rows[k], rows[pivot]] = [rows[pivot] ?? [], rows[k] ?? []]
    ;[right[k], right[pivot]] = [right[pivot] ?? 0, right[k] ?? 0]
    const top = rows[k] ?? []
    const head = top[k] ?? 0
    if (head === 0) continue
    for (let i = k + 1; i < n; i++) {
      const row = rows[i] ?? []
      const factor = (row[k] ?? 0) / head
      for (let j = k; j < n; j++) row[j] = (row[j] ?? 0) - factor * (top[j] ?? 0)
      right[i] = (right[i] ?? 0) - factor * (right[k] ?? 0)
    }
  }
  const x = new Array<number>(n).fill(0)
  for (let k = n - 1; k >= 0; k--) {
    const row = rows[k] ?? []
    let value = right[k] ?? 0
    for (let j = k + 1; j < n; j++) value -= (row[j] ?? 0) * (x[j] ?? 0)
    x[k] = (row[k] ?? 0) === 0 ? 0 : value / (row[k] ?? 1)
  }
  return x
}
