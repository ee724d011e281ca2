/** A file of `bench tuned` as a section: where the default is further behind than it may be. */
import { percent, table } from '../markdown.js'
import { textTable } from '../text-table.js'
import type { TunedResult } from '../tuned/bench.js'
import { head, stepName } from './head.js'

/** What the default may be behind. */
const bound = 0.05

const columns = ['shape', 'tokens', 'default', 'tuned', 'tuned is faster by', 'noise']

const cells = ({ rows }: TunedResult) =>
  rows.map((row) => [
    row.shape,
    String(row.tokens),
    row.heuristic.join(', '),
    row.chosen.join(', ') === row.heuristic.join(', ') ? 'the same' : row.chosen.join(', '),
    percent(row.speedup - 1),
    percent(row.noise),
  ])

function sentences({ rows, seconds, skipped }: TunedResult): string[] {
  const behind = rows.filter(({ speedup }) => speedup > 1 + bound)
  const unsure = rows.filter(({ noise }) => noise > bound)
  const longest = Math.max(0, ...Object.values(seconds))
  return [
    behind.length === 0
      ? `No step was found to be more than ${percent(bound, 0)} faster than the default’s.`
      : `The default is more than ${percent(bound, 0)} behind: ${behind.map(stepName).join(', ')}.`,
    ...(unsure.length === 0 ? [] : [`Too noisy to tell: ${unsure.map(stepName).join(', ')}.`]),
    `Tuning a shape took at most ${longest.toFixed(0)} s.`,
    ...(skipped.length === 0 ? [] : [`Not reached in the time: ${skipped.map(stepName).join(', ')}.`]),
  ]
}

export const tunedTable = (result: TunedResult): string =>
  `${textTable(columns, cells(result), 1)}\n\n${sentences(result).join('\n')}`

export function tunedSection(file: string, result: TunedResult): string {
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}

${sentences(result).join(' ')}

${table(columns, cells(result))}
`
}
