/** A file of `bench endurance` as a section: what grew over so many steps. */
import type { EnduranceResult } from '../endurance/bench.js'
import { table } from '../markdown.js'
import { textTable } from '../text-table.js'
import { head } from './head.js'

const columns = [
  'launched',
  'steps',
  'seconds',
  'live MiB',
  'live grew KiB',
  'device grew KiB',
  'process grew KiB',
  'same bits',
]

const kibibytes = (bytes: number | null) => (bytes === null ? 'n/a' : (bytes / 1024).toFixed(0))

const cells = ({ rows }: EnduranceResult) =>
  rows.map(({ launch, steps, seconds, readings, grownBytes, sameBits }) => [
    launch === 'graph' ? 'by graph' : 'one operation at a time',
    String(steps),
    seconds.toFixed(1),
    ((readings.at(-1)?.liveBytes ?? 0) / 2 ** 20).toFixed(1),
    kibibytes(grownBytes.live),
    kibibytes(grownBytes.device),
    kibibytes(grownBytes.resident),
    sameBits ? 'yes' : '**no**',
  ])

function sentence({ rows }: EnduranceResult): string {
  const grew = rows.filter(({ grownBytes: { live, device } }) => live > 0 || (device ?? 0) > 0)
  return grew.length === 0
    ? 'Neither what tensors and workspaces hold nor what the device has in use grew.'
    : `Memory of the device grew: ${grew.map(({ launch }) => launch).join(', ')}.`
}

export const enduranceTable = (result: EnduranceResult): string =>
  `${textTable(columns, cells(result), 1)}\n\n${sentence(result)}`

export function enduranceSection(file: string, result: EnduranceResult): string {
  const { shape, tokens, seed } = result
  return `${head(file, result.environment, result.what, [shape, `batches of ${tokens.join(', ')} tokens in turns`, `seed ${seed}`])}

${sentence(result)}

${table(columns, cells(result))}
`
}
