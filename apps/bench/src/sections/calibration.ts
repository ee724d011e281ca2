/** A file of `bench calibration` as a section. */
import { percent, table } from '../markdown.js'
import type { CalibrationResult } from '../scheduling/calibration.js'
import { head } from './head.js'

/** The agreement that is aimed at. */
const aim = 0.1

export function calibrationSection(file: string, result: CalibrationResult): string {
  const { fits, measurements } = result
  const over = fits.filter(({ heldOut }) => heldOut.maxError > aim)
  const body = fits.map(({ shape, rows, fitted, heldOut }) => {
    const own = measurements.rows.filter((row) => row.shape === shape)
    const tokens = [...new Set(own.map((row) => row.tokens))].join(', ')
    const tiered = own.filter(({ strategy }) => strategy === 'tiered').length
    const errors = [fitted, heldOut].flatMap((e) => [percent(e.maxError), percent(e.meanError)])
    return [shape, tokens, String(rows), String(tiered), ...errors]
  })
  const columns = ['shape', 'tokens', 'steps', 'of them tiered', 'fitted: max', 'mean', 'held out: max', 'mean']
  return `${head(file, result.environment, result.what)}
${
  over.length === 0
    ? 'On steps that the fit did not see, the model is within 10 % everywhere.'
    : `On steps that the fit did not see, the model is more than 10 % off at worst for ${over.map(({ shape, heldOut }) => `${shape} (${percent(heldOut.maxError)})`).join(', ')}.`
}

${table(columns, body, 2)}
`
}
