/** A file of `bench skew` as a section: where slices pay, where they cost, and what `auto` lost by its choice. */
import { change, table } from '../markdown.js'
import type { SkewResult, SkewRow } from '../scheduling/skew.js'
import type { RatioInterval } from '../scheduling/statistics.js'
import { head, stepName } from './head.js'

/** What `auto` may lose to the better of fused and tiered. */
const allowed = 1.03

const interval = ({ ratio, low, high }: RatioInterval) =>
  `${ratio.toFixed(3)} (${low.toFixed(3)} to ${high.toFixed(3)})`
const cell = (row: SkewRow) => `${stepName(row)} and skew ${row.skew}`

/** One strategy against fused, its gains and its costs alike. */
function verdict(name: string, rows: readonly SkewRow[], of: (row: SkewRow) => RatioInterval): string {
  const faster = rows.filter((row) => of(row).high < 1)
  const slower = rows.filter((row) => of(row).low > 1)
  const sorted = [...rows].sort((a, b) => of(a).ratio - of(b).ratio)
  const [first] = sorted
  const last = sorted.at(-1)
  const said = [
    `\`${name}\` is faster than \`fused\` in ${faster.length} of ${rows.length} cells and slower in ${slower.length}, by the ends of the intervals`,
  ]
  if (first && of(first).high < 1) said.push(`it gains most (${change(of(first).ratio)}) on ${cell(first)}`)
  if (last && of(last).low > 1) said.push(`it costs most (${change(of(last).ratio)}) on ${cell(last)}`)
  return `${said.join('; ')}.`
}

export function skewSection(file: string, result: SkewResult): string {
  const { rows } = result
  const over = rows.filter((row) => row.autoToBest.ratio > allowed)
  const lost = over.map((row) => `${cell(row)} (${change(row.autoToBest.ratio)})`)
  const auto =
    over.length === 0
      ? '`auto` loses at most 3 % to the better of `fused` and `tiered` in every cell.'
      : `\`auto\` loses more than 3 % to the better of \`fused\` and \`tiered\` in ${over.length} of ${rows.length} cells: ${lost.join('; ')}.`
  const columns = ['shape', 'tokens', 'skew', 'fused µs', 'tiered µs', 'cooperative µs', 'auto µs']
  const ratios = ['tiered ÷ fused', 'cooperative ÷ fused', 'auto ÷ better', 'auto chose']
  const body = rows.map((row) => [
    row.shape,
    String(row.tokens),
    String(row.skew),
    ...(['fused', 'tiered', 'cooperative', 'auto'] as const).map((kind) => row.medianUs[kind].toFixed(1)),
    interval(row.tieredToFused),
    interval(row.cooperativeToFused),
    interval(row.autoToBest),
    row.autoChose,
  ])
  const slices = rows.map((row) => [
    row.shape,
    String(row.tokens),
    String(row.skew),
    row.slices.map((s) => `${s.name} ${s.sms} SMs, ${s.experts} experts (${s.enforcement})`).join('; ') || 'none',
    row.autoReason,
  ])
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}
Medians of ${result.rounds} interleaved rounds, with 95 % bootstrap intervals; a ratio below 1 is a gain.
${verdict('tiered', rows, (row) => row.tieredToFused)}
${verdict('cooperative', rows, (row) => row.cooperativeToFused)}
${auto}

${table([...columns, ...ratios], body)}

The slices of \`tiered\` at the end of each cell, and what \`auto\` said of its choice:

${table(['shape', 'tokens', 'skew', 'slices', 'reason'], slices, 5)}
`
}
