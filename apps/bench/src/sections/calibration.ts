/** A file of `bench calibration` as a section. */
import { percent, table } from '../markdown.js'
import type { CalibrationResult, FitErrors } from '../scheduling/calibration.js'
import { head } from './head.js'

/** The agreement that is aimed at. */
const aim = 0.1

const errorColumns = ['fitted: max', '95 %', 'mean', 'held out: max', '95 %', 'mean']
const errors = (fitted: FitErrors, heldOut: FitErrors | null): string[] =>
  [fitted, heldOut].flatMap((e) =>
    e === null ? ['–', '–', '–'] : [e.maxError, e.p95Error, e.meanError].map((part) => percent(part)),
  )

export function calibrationSection(file: string, result: CalibrationResult): string {
  const { fits, measurements } = result
  const over = fits.filter(({ heldOut }) => heldOut.maxError > aim)
  const body = fits.map(({ shape, rows, fitted, heldOut }) => {
    const own = measurements.rows.filter((row) => row.shape === shape)
    const tokens = [...new Set(own.map((row) => row.tokens))].join(', ')
    const tiered = own.filter(({ strategy }) => strategy === 'tiered').length
    return [shape, tokens, String(rows), String(tiered), ...errors(fitted, heldOut)]
  })
  const columns = ['shape', 'tokens', 'steps', 'of them tiered', ...errorColumns]
  const byRegime = fits.flatMap(({ shape, regimes }) =>
    regimes.map(({ tokens, rows, fitted, heldOut, worst }) => [
      shape,
      String(tokens),
      String(rows),
      ...errors(fitted, heldOut),
      worst === null
        ? '–'
        : `${worst.sms.join(' + ')} SMs, at most ${worst.busiest} rows an expert: ${percent(worst.error)}`,
    ]),
  )
  const regimeColumns = ['shape', 'tokens', 'steps', ...errorColumns, 'furthest off']
  return `${head(file, result.environment, result.what)}
${
  over.length === 0
    ? 'On steps that the fit did not see, the model is within 10 % everywhere.'
    : `On steps that the fit did not see, the model is more than 10 % off at worst for ${over.map(({ shape, heldOut }) => `${shape} (${percent(heldOut.maxError)})`).join(', ')}.`
}

${table(columns, body, 2)}
${
  byRegime.length === 0
    ? ''
    : `
Each number of tokens is a regime of its own, because kernels differ; a step is held out by a fit to the others of its regime.

${table(regimeColumns, byRegime, 2)}
`
}`
}
