/** A file of `bench policies` as a section, and as the tables of docs/slices.md. */
import type { Estimate } from '@nexus/slices/simulator'
import { percent, table } from '../markdown.js'
import type { PoliciesResult, PolicyRow, PolicyTable } from '../scheduling/policies-bench.js'
import { head } from './head.js'

/** A policy may be so much slower than the best before it is named. */
const noted = 1.01

const signed = ({ mean, halfWidth }: Estimate, digits: number, scale = 1) =>
  halfWidth === null
    ? (scale * mean).toFixed(digits)
    : `${(scale * mean).toFixed(digits)} ± ${(scale * halfWidth).toFixed(digits)}`

const kindsOf = ({ rows }: PolicyTable) => [...new Set(rows.map(({ trace }) => trace))]

export function policyTable(each: PolicyTable): string {
  const columns = [
    'trace',
    'policy',
    'makespan / oracle',
    '/ proportional',
    'regret, %',
    'switches',
    'SMs moved',
    'experts moved',
  ]
  const body = each.rows.map((row) => [
    row.trace,
    row.policy,
    signed({ ...row.regret, mean: 1 + row.regret.mean }, 3),
    signed(row.toProportional, 3),
    signed(row.regret, 1, 100),
    ...[row.switches, row.movedSms, row.migrations].map((e) => signed(e, 0)),
  ])
  return table(columns, body, 2)
}

/** What is over 1.01 × the best of its trace even at the near end of its interval, and the best. */
function trace(name: string, rows: readonly PolicyRow[]): string {
  const [best] = [...rows].sort((a, b) => a.makespanMs.mean - b.makespanMs.mean)
  if (!best) return ''
  const behind = rows
    .filter(({ toBest }) => toBest.mean - (toBest.halfWidth ?? 0) > noted)
    .map((row) => `\`${row.policy}\` takes ${percent(row.toBest.mean - 1)} longer`)
  const all = behind.length === 0 ? 'no policy is more than 1 % behind' : behind.join(', ')
  return `- ${name}: \`${best.policy}\` is best, ${percent(best.regret.mean)} over the oracle; ${all}.`
}

const remarks = (each: PolicyTable) =>
  kindsOf(each)
    .map((name) =>
      trace(
        name,
        each.rows.filter((row) => row.trace === name),
      ),
    )
    .join('\n')

/** Which trace is of which layer, and how inputs drift: each said once. */
function sources(traces: PoliciesResult['traces']): string {
  const grouped = (key: (trace: PoliciesResult['traces'][number]) => string, name: (trace: string) => string) => {
    const names = new Map<string, Set<string>>()
    for (const trace of traces) names.set(key(trace), (names.get(key(trace)) ?? new Set()).add(name(trace.name)))
    return [...names].map(([text, of]) => `- ${[...of].map((each) => `\`${each}\``).join(', ')}: ${text}.`)
  }
  const layers = grouped(
    ({ layer }) => layer,
    (name) => name,
  )
  const drifts = grouped(
    ({ drift }) => drift,
    (name) => name.slice(name.indexOf('-') + 1),
  )
  return [...layers, ...drifts].join('\n')
}

/** The tables alone, each with who is behind. */
export function policyTables({ tables, traces }: PoliciesResult): string {
  return tables
    .map((each) => {
      const title = each.recorded
        ? `**${each.title} of ${each.numExperts.replaceAll(', ', ' or ')} experts; the file and ${each.runs - 1} further recordings of the same layer and drift**\n\n${sources(traces)}`
        : `**${each.title}; ${each.runs} seeds**`
      return `${title}\n\n${policyTable(each)}\n\n${remarks(each)}`
    })
    .join('\n\n')
}

export function policiesSection(file: string, result: PoliciesResult): string {
  const [first] = result.seeds
  return `${head(file, result.environment, result.what, [`seeds from ${first}`])}
Means with 95 % confidence intervals, ratios paired by seed; the last three columns are per 1000 steps. The tables stand in [slices.md](slices.md#the-simulator).

${result.tables.map((each) => `${each.title}:\n\n${remarks(each)}`).join('\n\n')}
`
}
