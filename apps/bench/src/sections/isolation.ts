/** A file of `bench isolation` as a section: what each arrangement gives one tenant, and what the other pays for it. */
import { figure, percent, table } from '../markdown.js'
import type { IsolationResult, IsolationRow } from '../scheduling/isolation.js'
import { textTable } from '../text-table.js'
import { head } from './head.js'

const columns = [
  'arrangement',
  'decode p50',
  'decode p99',
  'decode steps/s',
  'prefill p50',
  'prefill p99',
  'prefill steps/s',
  'of its share',
  'together',
  'J/token',
  'W',
]

const cells = (r: IsolationRow) => [
  r.arrangement,
  r.decode.p50.toFixed(2),
  r.decode.p99.toFixed(2),
  r.decode.throughput.toFixed(3),
  r.prefill.p50.toFixed(2),
  r.prefill.p99.toFixed(2),
  r.prefill.throughput.toFixed(3),
  figure(r.prefillOfShare, 2),
  r.together.toFixed(3),
  figure(r.joulesPerToken, 4),
  figure(r.watts, 0),
]

/** One arrangement in words, what is lost in the same breath as what is won. */
const inWords = (r: IsolationRow) =>
  `${r.arrangement} holds decode's p99 at ${r.decode.p99.toFixed(2)} times and its p50 at ${r.decode.p50.toFixed(2)} times what they are alone, and costs ` +
  `prefill ${percent(1 - r.prefill.throughput, 0)} of its throughput and decode ${percent(1 - r.decode.throughput, 0)}; together they make ${r.together.toFixed(3)} of one chip each alone`

function findings(result: IsolationResult): string[] {
  const { rows, auto, options, failed } = result
  const within = rows.filter((r) => r.decode.p99Us <= auto.p99BoundUs)
  const byP99 = [...rows].sort((a, b) => a.decode.p99 - b.decode.p99)
  const byTogether = [...rows].sort((a, b) => b.together - a.together)
  const said: string[] = []
  const bound = `decode's p99 within ${options.p99Bound} times what it is alone`
  if (within.length === 0) said.push(`No arrangement keeps ${bound}`)
  else
    said.push(
      `${within.length} of ${rows.length} arrangements keep ${bound}: ${within.map((r) => r.arrangement).join(', ')}`,
    )
  const [calmest] = byP99
  const [fullest] = byTogether
  if (calmest) said.push(`The calmest for decode: ${inWords(calmest)}`)
  if (fullest && fullest !== calmest) said.push(`The most in all: ${inWords(fullest)}`)
  const slices = within.filter((r) => r.kind === 'slices' && (r.prefillOfShare ?? 0) >= 0.85)
  said.push(
    slices.length > 0
      ? `Hardware slices that keep the bound and give prefill at least 0.85 of its share of the SMs: ${slices.map((r) => r.arrangement).join(', ')}`
      : 'No hardware slices keep the bound and give prefill at least 0.85 of its share of the SMs as well',
  )
  const of =
    auto.ofBest === null
      ? ''
      : `; over the long run it makes ${figure(auto.ofBest, 3)} of ${auto.best}, the best within the bound`
  said.push(`\`auto\` chose ${auto.chosen} (${auto.reason})${of}`)
  for (const { arrangement, why } of failed) said.push(`${arrangement} could not be run: ${why}`)
  const unmetered = rows.find((r) => r.joulesPerToken === null)
  if (unmetered) said.push(`Without joules: ${unmetered.energyReason ?? 'no reason was given'}`)
  return said
}

/** The arrangements alone, for a terminal. */
export const isolationTable = ({ rows }: IsolationResult): string => textTable(columns, rows.map(cells), 1)

export function isolationSection(file: string, result: IsolationResult): string {
  const { decode, prefill, seconds, minSteps } = result.options
  const tenant = (name: string, t: typeof decode) => `${name}: ${t.shape.name}, ${t.tokens} tokens a step`
  const { alone } = result
  const auto = result.auto.row
  const body = [
    ...result.rows.map(cells),
    ...(auto === null ? [] : [[`auto: ${auto.arrangement}`, ...cells(auto).slice(1)]]),
  ]
  const inSlice = result.aloneInSlice.map((s) => [s.tenant, String(s.sms), s.p50.toFixed(2), s.p99.toFixed(2)])
  return `${head(file, result.environment, result.what)}
${tenant('Decode', decode)}; ${tenant('prefill', prefill)}. At least ${minSteps} steps of decode and ${seconds} s for each arrangement.
Alone, decode takes ${alone.decode.p50Us.toFixed(1)} µs (p50) and ${alone.decode.p99Us.toFixed(1)} µs (p99) a step, prefill ${alone.prefill.p50Us.toFixed(0)} µs and ${alone.prefill.p99Us.toFixed(0)} µs.

${findings(result)
  .map((sentence) => `- ${sentence}.`)
  .join('\n')}

${table(columns, body)}

${
  result.rows.some((r) => r.readAheadBytes != null)
    ? `"MB ahead": decode's kernels keep at most so many bytes of weights under way (\`readAheadBytes\`, advisory).\n\n`
    : ''
}All but joules and watts are relative to the same tenant alone on the whole device. What a slice costs without any neighbour:

${table(['tenant', 'SMs', 'p50', 'p99'], inSlice)}
`
}
