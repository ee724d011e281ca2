/** A file of `bench calibration` as a section. */
import { percent, table } from '../markdown.js'
import type { ArrangedStep } from '../scheduling/arranged.js'
import type { CalibrationResult } from '../scheduling/calibration.js'
import type { CalibrationFit, FitErrors, WorstRow } from '../scheduling/fits.js'
import type { UnseenSteps } from '../scheduling/unseen.js'
import { head } from './head.js'

/** The agreement that is aimed at. */
const aim = 0.1

const errorColumns = ['fitted: max', '95 %', 'mean', 'held out: max', '95 %', 'mean']
const errors = (fitted: FitErrors | null, heldOut: FitErrors | null): string[] =>
  [fitted, heldOut].flatMap((e) =>
    e === null ? ['–', '–', '–'] : [e.maxError, e.p95Error, e.meanError].map((part) => percent(part)),
  )

function verdict({ fits, measurements }: CalibrationResult): string {
  if (fits.length === 0) {
    return `${measurements.rows.length} steps were measured, and no model was fitted to them (\`--from\` does).`
  }
  const over = fits.filter(({ tiles }) => tiles.heldOut.maxError > aim)
  if (over.length === 0) return "On steps that the fit did not see, the simulator's clock is within 10 % everywhere."
  const worst = over.map(({ shape, tiles }) => `${shape} (${percent(tiles.heldOut.maxError)})`)
  return `On steps that the fit did not see, the simulator's clock is more than 10 % off at worst for ${worst.join(', ')}.`
}

const worstText = (worst: WorstRow | null): string =>
  worst === null
    ? '–'
    : `${worst.sms.join(' + ')} SMs, at most ${worst.busiest} rows an expert: ${percent(worst.error)}`

const models = [
  ['tiles', 'tile by tile'],
  ['cost', 'closed form'],
] as const

function regimeTable(fits: readonly CalibrationFit[], model: 'tiles' | 'cost'): string {
  const body = fits.flatMap((fit) =>
    fit[model].regimes.map(({ tokens, rows, fitted, heldOut, worst }) => [
      fit.shape,
      String(tokens),
      String(rows),
      ...errors(fitted, heldOut),
      worstText(worst),
    ]),
  )
  return table(['shape', 'tokens', 'steps', ...errorColumns, 'furthest off'], body, 2)
}

const another = (unseen: readonly UnseenSteps[]): string => `
Another run's steps, predicted by the clock as it is fitted to this one's; and those that both have, one measurement against the other:

${unseenTable(unseen)}
`

function unseenTable(unseen: readonly UnseenSteps[]): string {
  const body = unseen.map(({ shape, tokens, rows, off, worst, again, moved }) => [
    ...[shape, String(tokens), String(rows)],
    ...errors(off, null).slice(0, 3),
    worstText(worst),
    String(again),
    ...errors(moved, null).slice(0, 3),
  ])
  const columns = ['clock off: max', '95 %', 'mean', 'furthest off', 'measured again', 'apart: max', '95 %', 'mean']
  return table(['shape', 'tokens', 'new steps', ...columns], body, 2)
}

/** Ratios of the steps' times: below 1 the first is sooner. */
function arrangedTable(steps: readonly ArrangedStep[]): string {
  const body = steps.map(({ shape, tokens, busiest, byTilesUs, driftedUs, byBytesUs }) => [
    ...[shape, String(tokens), String(busiest)],
    ...[byTilesUs, driftedUs, byBytesUs].map((us) => us.toFixed(1)),
    (byTilesUs / byBytesUs).toFixed(2),
  ])
  const columns = [
    'rows of the busiest',
    'by tiles, us',
    'by the tiles of a drifted load',
    'by bytes, us',
    'tiles / bytes',
  ]
  return table(['shape', 'tokens', ...columns], body, 2)
}

const arrangedText = (steps: readonly ArrangedStep[]): string => `
Three slices as policies arrange them, on the device: by the kernels' tiles, which are the default there, and by bytes and operations (\`gatedExpertCost\`).
In the geometric mean steps arranged by tiles take ${Math.exp(
  steps.reduce((sum, { byTilesUs, byBytesUs }) => sum + Math.log(byTilesUs / byBytesUs), 0) / steps.length,
).toFixed(
  3,
)} of the others' time, at best ${Math.min(...steps.map((s) => s.byTilesUs / s.byBytesUs)).toFixed(2)}, at worst ${Math.max(...steps.map((s) => s.byTilesUs / s.byBytesUs)).toFixed(2)}:

${arrangedTable(steps)}
`

export function calibrationSection(file: string, result: CalibrationResult): string {
  const { fits, measurements, unseen, arranged = [] } = result
  const body = fits.flatMap((fit) => {
    const own = measurements.rows.filter((row) => row.shape === fit.shape)
    const tokens = [...new Set(own.map((row) => row.tokens))].join(', ')
    const tiered = own.filter(({ strategy }) => strategy === 'tiered').length
    return models.map(([model, name]) => [
      fit.shape,
      name,
      tokens,
      String(fit.rows),
      String(tiered),
      ...errors(fit[model].fitted, fit[model].heldOut),
    ])
  })
  const columns = ['shape', 'model', 'tokens', 'steps', 'of them tiered', ...errorColumns]
  const byRegime = `
Each number of tokens is a regime of its own, because kernels differ; a step is held out by a fit to the others of its regime. Tile by tile,
the simulator's clock:

${regimeTable(fits, 'tiles')}

The closed form of bytes and operations:

${regimeTable(fits, 'cost')}
`
  return `${head(file, result.environment, result.what)}
${verdict(result)}

${table(columns, body, 2)}
${fits.some(({ tiles }) => tiles.regimes.length > 0) ? byRegime : ''}${unseen === undefined ? '' : another(unseen)}${arranged.length === 0 ? '' : arrangedText(arranged)}`
}
