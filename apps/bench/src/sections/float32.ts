/** A file of `bench float32` as a section: our rate over the faster of cuBLAS's two. */
import type { Float32Result, Float32Row } from '../float32/bench.js'
import { figure, table } from '../markdown.js'
import { textTable } from '../text-table.js'
import { head, stepName } from './head.js'

/** Of cuBLAS's rate, at least. */
const bound = 0.5

const columns = ['shape', 'tokens', 'us', 'TFLOP/s', 'cuBLAS, experts', 'cuBLAS, square', 'ours ÷ cuBLAS', 'error']

/** Over the faster one; `null` without either. */
function partOf({ squareTflops }: Float32Result, { nexusTflops, sgemmTflops }: Float32Row): number | null {
  const best = Math.max(sgemmTflops ?? 0, squareTflops ?? 0)
  return best > 0 ? nexusTflops / best : null
}

const cells = (result: Float32Result) =>
  result.rows.map((row) => [
    row.shape,
    String(row.tokens),
    row.nexusUs.toFixed(0),
    row.nexusTflops.toFixed(1),
    figure(row.sgemmTflops, 1),
    figure(result.squareTflops, 1),
    figure(partOf(result, row), 2),
    row.relativeError.toExponential(1),
  ])

function sentence(result: Float32Result): string {
  if (result.peerError !== null) return `cuBLAS has no rate: ${result.peerError}.`
  const under = result.rows.filter((row) => (partOf(result, row) ?? 0) < bound)
  return under.length === 0
    ? `Every rate is at least ${bound} of cuBLAS’s.`
    : `Less than ${bound} of cuBLAS’s rate: ${under.map(stepName).join(', ')}.`
}

export const float32Table = (result: Float32Result): string =>
  `${textTable(columns, cells(result), 1)}\n\n${sentence(result)}`

export function float32Section(file: string, result: Float32Result): string {
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}

${sentence(result)}

${table(columns, cells(result))}
`
}
