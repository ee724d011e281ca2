/** A file of `bench layer` as a section. */
import type { LayerBenchResult } from '../layer-bench.js'
import { table } from '../markdown.js'
import { head } from './head.js'

export function layerSection(file: string, result: LayerBenchResult): string {
  const { environment, rows } = result
  const peers = [...new Set(rows.flatMap((r) => Object.keys(r.peers)))]
  const columns = ['shape', 'tokens', 'skew', 'limit µs', 'Nexus µs', '× limit', 'error', ...peers.map((p) => `÷ ${p}`)]
  const body = rows.map((r) => [
    r.shape,
    String(r.tokens),
    String(r.skew),
    r.limitUs.toFixed(1),
    r.nexusUs.toFixed(1),
    r.ratio.toFixed(2),
    r.relativeError.toExponential(1),
    ...peers.map((p) => {
      const us = r.peers[p]
      return us === undefined ? 'n/a' : `${(us / r.nexusUs).toFixed(2)} (${us.toFixed(1)} µs)`
    }),
  ])
  const slower = rows.filter((r) => Object.values(r.peers).some((us) => us < r.nexusUs)).length
  return `${head(file, environment, result.what, [`seed ${result.seed}`])}
${slower} of ${rows.length} cells are slower than the best of the peers that ran beside them.

${table(columns, body)}
`
}
