/** A file of `bench layer` by region, few lines for the README: what a reader asks first, and a link to the rest. */
import { isScaled } from '../layer/anchors.js'
import type { LayerBenchResult } from '../layer/bench.js'
import type { LayerRow } from '../layer/measure.js'
import { standingOf, summarise } from '../layer/standing.js'
import { table } from '../markdown.js'

const configurations = /^seed-/
const models = ({ shape }: LayerRow) => !configurations.test(shape)
const even = (row: LayerRow) => models(row) && row.skew === 0

/** In the order of the table; a row belongs to the first that takes it. */
const regions: readonly (readonly [name: string, takes: (row: LayerRow) => boolean])[] = [
  ['1 token', (row) => even(row) && row.tokens === 1],
  ['8 and 64 tokens', (row) => even(row) && row.tokens <= 64],
  ['512', (row) => even(row) && row.tokens <= 512],
  ['4096 and 16384', even],
  ['64 to 2048, a few experts hot', models],
  ['three small configurations, 64 and 512', () => true],
]

const range = (values: readonly number[]): string => {
  if (values.length === 0) return 'n/a'
  const [least, most] = [Math.min(...values).toFixed(2), Math.max(...values).toFixed(2)]
  return least === most ? least : `${least} to ${most}`
}

/** How far ahead, how near the limit, and where it was measured. */
export function regionsSummary({ environment, rows }: LayerBenchResult): string {
  const { cells, compared, meanGain, slower } = summarise(rows)
  const left = [...rows]
  const body = regions.map(([name, takes]) => {
    const own = left.filter(takes)
    for (const row of own) left.splice(left.indexOf(row), 1)
    const gains = own.flatMap((row) => standingOf(row).gain ?? [])
    return { name, own, cells: [name, String(own.length), range(gains), range(own.map(({ ratio }) => ratio))] }
  })
  const scaled = rows.some(({ peers }) => Object.keys(peers).some(isScaled))
  const behind = slower.length === 0 ? 'none of them slower' : `${slower.length} of them slower`
  return `One layer in bf16, from (x, router logits) to y, on an ${environment.device} (${environment.date.slice(0, 10)}): ${cells} cells of five models and three
configurations, in the geometric mean **${meanGain.toFixed(2)} times as fast as the best peer** of each${compared === cells ? '' : ` (${compared} cells)`}, ${behind}. Peers are PyTorch's grouped products plain
and with Triton glue, a decode kernel, and vLLM's and Triton's own MoE kernels${scaled ? ', of which those that could not be installed beside ours count with times measured before, scaled by PyTorch’s' : ''}.

${table(
  ['tokens', 'cells', 'best peer ÷ Nexus', 'Nexus ÷ physical limit'],
  body.filter(({ own }) => own.length > 0).map((region) => region.cells),
)}

The limit is the larger of the bytes at 4.3 TB/s and the products at 790 TFLOP/s; reads alone reach a little more. From 4096 tokens on the chip is at its 700 W.
Every cell: [benchmarks](docs/benchmarks.md).`
}
