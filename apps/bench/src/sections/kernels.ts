/** A file of `bench kernels` as a section, and as the table of a terminal. */
import { table } from '../markdown.js'
import type { KernelRow, KernelsBenchResult } from '../primitives/kernels.js'
import { textTable } from '../text-table.js'
import { head, stepName } from './head.js'

const columns = ['shape', 'tokens', 'phase', 'variant', 'chosen', 'us', 'GB/s', 'TFLOP/s']

const cells = (row: KernelRow) => [
  row.shape,
  String(row.tokens),
  row.phase,
  row.variant === '' ? '-' : row.variant,
  row.chosen ? 'yes' : row.path === 'default' ? 'no' : `no (${row.path})`,
  row.us.toFixed(2),
  row.gigabytesPerSecond.toFixed(0),
  row.teraflopsPerSecond.toFixed(1),
]

/** Where another variant is faster than the one that is chosen. */
function sentences({ rows, relativeErrors, failed }: KernelsBenchResult): string[] {
  const better = rows.flatMap((row) => {
    if (row.chosen) return []
    const chosen = rows.find(
      (each) => each.chosen && each.shape === row.shape && each.tokens === row.tokens && each.phase === row.phase,
    )
    if (chosen === undefined || chosen.variant === row.variant || row.us >= 0.98 * chosen.us) return []
    const gain = `${row.us.toFixed(1)} against ${chosen.us.toFixed(1)} us`
    return [`${stepName(row)}, ${row.phase}: ${row.variant} (${gain})`]
  })
  const errors = Object.entries(relativeErrors).map(([path, error]) => `${error.toExponential(1)} (${path})`)
  return [
    better.length === 0
      ? 'No variant that was measured is more than 2 % faster than the one that is chosen.'
      : `Faster than what is chosen by more than 2 %: ${better.join('; ')}.`,
    `Largest relative error to float64: ${errors.join(', ')}.`,
    ...failed.map(({ what, why }) => `Not measured: ${what}: ${why}.`),
  ]
}

export const kernelsTable = (result: KernelsBenchResult): string =>
  `${textTable(columns, result.rows.map(cells), 1)}\n\n${sentences(result).join('\n')}`

export function kernelsSection(file: string, result: KernelsBenchResult): string {
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}
${sentences(result).join('\n')}

${table(columns, result.rows.map(cells), 5)}
`
}
