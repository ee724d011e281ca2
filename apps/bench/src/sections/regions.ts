/** A file of `bench layer` by region, few lines for the README: what a reader asks first, and a link to the rest. */
import { original } from '../layer/aims.js'
import { isScaled } from '../layer/anchors.js'
import type { LayerBenchResult } from '../layer/bench.js'
import type { LayerRow } from '../layer/measure.js'
import { standingOf, summarise } from '../layer/standing.js'
import { bf16FlopPerSecond, hbmBytesPerSecond } from '../limits.js'
import { table } from '../markdown.js'

/** In the order of the table. */
const regions = ['1', '8 and 64', '512', '4096 and 16384', 'some experts hot', 'small configurations'] as const

function regionOf({ shape, tokens, skew }: LayerRow): (typeof regions)[number] {
  if (original.includes(shape)) return 'small configurations'
  if (skew !== 0) return 'some experts hot'
  if (tokens === 1) return '1'
  if (tokens <= 64) return '8 and 64'
  return tokens <= 512 ? '512' : '4096 and 16384'
}

const range = (values: readonly number[]): string =>
  values.length === 0 ? 'n/a' : `${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`

/** How far ahead, how near the limit, and where it was measured. */
export function regionsSummary({ environment, rows }: LayerBenchResult): string {
  const { compared, meanGain, slower } = summarise(rows)
  const shapes = new Set(rows.map(({ shape }) => shape))
  const scaled = rows.some(({ peers }) => Object.keys(peers).some(isScaled))
  const said = [
    `One layer in bf16, from (x, router logits) to y, ${shapes.size} shapes on an ${environment.device} (${environment.date.slice(0, 10)}).`,
    `Over ${compared} cells it is in the geometric mean **${meanGain.toFixed(2)} times as fast as the best peer** of each, and ${slower.length === 0 ? 'in none' : `in ${slower.length}`} slower.`,
    "Peers are PyTorch's grouped products, the same with Triton glue, a decode kernel, and the MoE kernels of vLLM and Triton.",
    ...(scaled
      ? ["Those that were not installed count with an earlier time, scaled by PyTorch's between then and now."]
      : []),
  ]
  const body = regions.flatMap((region) => {
    const own = rows.filter((row) => regionOf(row) === region)
    const gains = own.flatMap((row) => standingOf(row).gain ?? [])
    return own.length === 0 ? [] : [[region, String(own.length), range(gains), range(own.map(({ ratio }) => ratio))]]
  })
  return `${said.join('\n')}

${table(['tokens', 'cells', 'best peer ÷ Nexus', 'Nexus ÷ physical limit'], body)}

The limit is the larger of the bytes at ${hbmBytesPerSecond / 1e12} TB/s and the products at ${bf16FlopPerSecond / 1e12} TFLOP/s; reads alone reach a little more.
Every cell: [benchmarks](docs/benchmarks.md).`
}
