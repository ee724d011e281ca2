/** A file of `bench router` as a section, and as the table of a terminal. */
import { figure, table } from '../markdown.js'
import type { RouterBenchResult } from '../primitives/router.js'
import { textTable } from '../text-table.js'
import { head } from './head.js'

const kilobytes = (bytes: number | null) => (bytes === null ? 'n/a' : (bytes / 1e3).toFixed(1))

function cells({ rows }: RouterBenchResult) {
  const peers = [...new Set(rows.flatMap((row) => Object.keys(row.peers)))]
  const columns = ['experts', 'top k', 'tokens', 'us', 'aim us', 'met', 'kB one pass', 'kB separate', 'kB counted']
  const body = rows.map((row) => [
    String(row.experts),
    String(row.topK),
    String(row.tokens),
    row.nexusUs.toFixed(2),
    figure(row.aimUs, 0),
    row.aimUs === null ? 'n/a' : row.nexusUs <= row.aimUs ? 'yes' : '**no**',
    kilobytes(row.bytes.onePass),
    kilobytes(row.bytes.separate),
    kilobytes(row.countedBytes),
    ...peers.map((peer) => figure(row.peers[peer], 2)),
  ])
  return { columns: [...columns, ...peers], body }
}

function sentences({ rows, peersError, countersReason }: RouterBenchResult): string[] {
  const over = rows.filter(({ nexusUs, aimUs }) => aimUs !== null && nexusUs > aimUs)
  const behind = rows.filter(({ nexusUs, peers }) => Object.values(peers).some((us) => us < nexusUs))
  const name = ({ experts, tokens }: RouterBenchResult['rows'][number]) => `${experts} experts with ${tokens} tokens`
  const list = (some: typeof over) => some.map(name).join(', ')
  return [
    over.length === 0 ? 'Every aim is met.' : `${over.length} aims are missed: ${list(over)}.`,
    ...(behind.length === 0 ? [] : [`Slower than a peer (not all of them make buckets): ${list(behind)}.`]),
    ...(peersError === null ? [] : [`Of the peers: ${peersError}.`]),
    ...(countersReason === null ? [] : [`Bytes were not counted: ${countersReason}.`]),
  ]
}

export function routerTable(result: RouterBenchResult): string {
  const { columns, body } = cells(result)
  return `${textTable(columns, body)}\n\n${sentences(result).join('\n')}`
}

export function routerSection(file: string, result: RouterBenchResult): string {
  const { columns, body } = cells(result)
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}
${sentences(result).join('\n')}

${table(columns, body, 3)}
`
}
