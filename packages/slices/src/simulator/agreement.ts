/** How well a cost model says what was measured. */
import type { CostModel } from '../cost.js'
import { predictStep } from '../predict.js'
import type { StepMeasurement } from './measurements.js'

/** One step, measured and predicted. */
export interface RowAgreement {
  readonly row: StepMeasurement
  readonly predictedUs: number
  /** predicted / measured - 1. */
  readonly error: number
}

export interface Agreement {
  readonly rows: readonly RowAgreement[]
  /** The largest |error|; 0 without rows. */
  readonly maxError: number
  /** Mean and median of |error|. */
  readonly meanError: number
  readonly medianError: number
  /** Mean of the signed errors: above 0, the model is too slow. */
  readonly bias: number
}

/** Microseconds that the model gives a measured step. */
export function predictRow(cost: CostModel, { sms, sliceOf, counts }: StepMeasurement): number {
  return predictStep(cost, counts, { sms, sliceOf: sliceOf ?? new Array<number>(counts.length).fill(0) }).stepUs
}

/** @internal */
export function agreementOf(rows: readonly RowAgreement[]): Agreement {
  const sizes = rows.map(({ error }) => Math.abs(error)).sort((a, b) => a - b)
  const mean = (values: readonly number[]) => values.reduce((sum, x) => sum + x, 0) / Math.max(1, values.length)
  const middle = ((sizes[(sizes.length - 1) >> 1] ?? 0) + (sizes[sizes.length >> 1] ?? 0)) / 2
  return {
    rows,
    maxError: sizes.at(-1) ?? 0,
    meanError: mean(sizes),
    medianError: middle,
    bias: mean(rows.map(({ error }) => error)),
  }
}

/** Predicted against measured, row by row. */
export function agreement(rows: readonly StepMeasurement[], cost: CostModel): Agreement {
  return agreementOf(
    rows.map((row) => {
      const predictedUs = predictRow(cost, row)
      return { row, predictedUs, error: predictedUs / row.us - 1 }
    }),
  )
}
