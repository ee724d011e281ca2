/** A file of `bench start-up` as a section: the first forward beside the bound. */
import { table } from '../markdown.js'
import type { StartUpResult } from '../start-up/bench.js'
import { textTable } from '../text-table.js'
import { head, stepName } from './head.js'

/** Of the first forward, once the weights are there; milliseconds. */
const boundMs = 200

const columns = ['shape', 'tokens', 'layer there ms', 'first forward ms', 'slowest', 'second', 'later']

const cells = ({ rows }: StartUpResult) =>
  rows.map((row) => [
    row.shape,
    String(row.tokens),
    row.layerMs.toFixed(0),
    row.firstMs.toFixed(1),
    row.firstMaxMs.toFixed(1),
    row.secondMs.toFixed(2),
    row.laterMs.toFixed(2),
  ])

function sentences({ rows, failed }: StartUpResult): string[] {
  const over = rows.filter(({ firstMaxMs }) => firstMaxMs >= boundMs)
  return [
    over.length === 0
      ? `Every first forward took less than ${boundMs} ms.`
      : `A first forward took ${boundMs} ms or more: ${over.map(stepName).join(', ')}.`,
    ...failed.map(({ cell, why }) => `${cell} tokens could not be run: ${why}.`),
  ]
}

export const startUpTable = (result: StartUpResult): string =>
  `${textTable(columns, cells(result), 1)}\n\n${sentences(result).join('\n')}`

export function startUpSection(file: string, result: StartUpResult): string {
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}

${sentences(result).join('\n')}

${table(columns, cells(result))}
`
}
