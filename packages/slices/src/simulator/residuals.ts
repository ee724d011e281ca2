/** What the fits of cost models make small. */
import type { StepMeasurement } from './measurements.js'

/** Errors are weighed more from about here on, for what has to hold is the largest error. */
const LARGE = 0.05

/**
 * The logarithms of predicted by measured, a row each, large ones weighed more; behind them the distance of each variable from where it stays when
 * the rows say nothing about it.
 * @param pull weight of such a distance against a row's logarithm
 */
export function residualsOf(
  rows: readonly StepMeasurement[],
  predict: (row: StepMeasurement) => number,
  x: readonly number[],
  neutral: readonly number[],
  pull: number,
): Float64Array {
  const values = new Float64Array(rows.length + neutral.length)
  for (const [i, row] of rows.entries()) {
    const off = Math.log(predict(row) / row.us)
    values[i] = off * (1 + Math.abs(off) / LARGE)
  }
  for (let p = 0; p < neutral.length; p++) values[rows.length + p] = pull * ((x[p] ?? 0) - (neutral[p] ?? 0))
  return values
}
