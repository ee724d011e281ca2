/** A file of `bench ablation` as a section: each rung beside the one that it adds to, gains and losses alike. */
import type { AblationResult, AblationRow } from '../ablation/bench.js'
import { figure, percent, table } from '../markdown.js'
import { textTable } from '../text-table.js'
import { head } from './head.js'

const columns = [
  'rung',
  'tokens/s',
  'p50 us',
  'p99 us',
  'gain',
  'to the loop',
  'SMs',
  'occupancy',
  'tensor',
  'memory',
  'mJ/token',
  'W',
  'error',
  'same bits',
]

const share = (part: number | null) => (part === null ? 'n/a' : percent(part, 0))

/** By the median: how many times as fast. */
const gainOf = (before: AblationRow, row: AblationRow) => before.p50Us / row.p50Us

/** Slower by more than half a percent. */
const isLoss = (gain: number) => gain < 0.995

const baseOf = (rows: readonly AblationRow[], { base }: AblationRow) => rows.find(({ rung }) => rung === base)

function gain(rows: readonly AblationRow[], row: AblationRow): string {
  const base = baseOf(rows, row)
  if (base === undefined) return '-'
  const value = gainOf(base, row)
  return `${value.toFixed(2)} of ${base.rung}${isLoss(value) ? ', a loss' : ''}`
}

const cells = (rows: readonly AblationRow[]) =>
  rows.map((row, i) => [
    row.rung,
    row.tokensPerSecond.toFixed(0),
    row.p50Us.toFixed(1),
    row.p99Us.toFixed(1),
    gain(rows, row),
    i === 0 || !rows[0] ? '-' : gainOf(rows[0], row).toFixed(1),
    share(row.smActivity),
    share(row.smOccupancy),
    share(row.tensorActivity),
    share(row.dramActivity ?? row.memoryUtilisation),
    figure(row.joulesPerToken === null ? null : 1e3 * row.joulesPerToken, 3),
    figure(row.watts, 0),
    row.relativeError.toExponential(1),
    row.sameBits === null ? 'n/a' : row.sameBits ? 'yes' : '**no**',
  ])

/** Rows of one cell after another. */
function byCell({ rows }: AblationResult): Map<string, AblationRow[]> {
  const found = new Map<string, AblationRow[]>()
  for (const row of rows) {
    const name = `${row.shape}, ${row.tokens} tokens${row.skew === 0 ? '' : `, skew ${row.skew}`}`
    found.set(name, [...(found.get(name) ?? []), row])
  }
  return found
}

function sentences(result: AblationResult): string[] {
  const said: string[] = []
  for (const [cell, rows] of byCell(result)) {
    const [first] = rows
    const best = rows.reduce((a, b) => (b.p50Us < a.p50Us ? b : a))
    const lost = rows.filter((row) => {
      const base = baseOf(rows, row)
      return base !== undefined && isLoss(gainOf(base, row))
    })
    if (!first) continue
    const losses = lost.map((row) => `\`${row.rung}\` loses to \`${row.base}\``)
    said.push(
      `${cell}: \`${best.rung}\` is best, ${gainOf(first, best).toFixed(1)} times as fast as the ${first.rung}; ` +
        (lost.length === 0 ? 'no rung loses to the one that it adds to' : losses.join(', ')),
    )
  }
  const unknown = new Map<string, Set<string>>()
  for (const { reasons } of result.rows) {
    for (const [name, why] of Object.entries(reasons)) unknown.set(why, (unknown.get(why) ?? new Set()).add(name))
  }
  for (const [why, names] of unknown) said.push(`Not known in some rows, ${[...names].join(', ')}: ${why}`)
  for (const { cell, rung, why } of result.failed) said.push(`${cell}, ${rung}: ${why}`)
  return said
}

export const ablationTable = (result: AblationResult): string =>
  [
    ...[...byCell(result)].map(([cell, rows]) => `${cell}\n${textTable(columns, cells(rows), 1)}`),
    sentences(result).join('\n'),
  ].join('\n\n')

export function ablationSection(file: string, result: AblationResult): string {
  const tables = [...byCell(result)].map(([cell, rows]) => `${cell}:\n\n${table(columns, cells(rows))}`)
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`, `${result.seconds} s for each rung`])}

${sentences(result)
  .map((sentence) => `- ${sentence}.`)
  .join('\n')}

${tables.join('\n\n')}
`
}
