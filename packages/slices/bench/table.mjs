// The simulator's tables of docs/slices.md:   node packages/slices/bench/table.mjs [--write]     (built first: npm run build)
// Prints Markdown; with --write, puts it between the markers in the document.
import { readFileSync, writeFileSync } from 'node:fs'
import { policies } from '../dist/index.js'
import { compare, ratio, traceKinds } from '../dist/simulator.js'

const seeds = Array.from({ length: 20 }, (_, i) => 9001 + i)
const list = [policies.static(), policies.dynamic(), policies.proportional(), policies.adaptive()]

const some = ['stationary', 'periodic', 'gradual', 'flash-crowd']

const signed = ({ mean, halfWidth }, digits) => `${mean.toFixed(digits)} ± ${halfWidth.toFixed(digits)}`

function table(title, traces, options) {
  const lines = [
    `**${title}**`,
    '',
    '| trace | policy | makespan / proportional | regret, % | switches | SMs moved | experts moved |',
    '|---|---|---|---|---|---|---|',
  ]
  for (const kind of traces) {
    const rows = compare({ policies: list, traces: [kind], seeds, ...options })
    const reference = rows.find(({ policy }) => policy === 'proportional')
    for (const row of rows) {
      const percent = { mean: row.regret.mean * 100, halfWidth: row.regret.halfWidth * 100 }
      const counts = [row.switches, row.movedSms, row.migrations].map(({ mean }) => mean.toFixed(0))
      const cells = [kind, row.policy, signed(ratio(row, reference), 3), signed(percent, 1), ...counts]
      lines.push(`| ${cells.join(' | ')} |`)
    }
  }
  return lines.join('\n')
}

const text = [
  table('64 experts, 65536 assignments a step: mostly bound by arithmetic', traceKinds, {}),
  table('128 experts, 32768 assignments a step: hot experts bound by arithmetic, cold ones by memory', some, {
    trace: { numExperts: 128, assignments: 32768 },
  }),
  table('128 experts, 8192 assignments a step: bound by memory', some, {
    trace: { numExperts: 128, assignments: 8192 },
  }),
].join('\n\n')

if (process.argv.includes('--write')) {
  const file = new URL('../../../docs/slices.md', import.meta.url)
  const before = readFileSync(file, 'utf8')
  const after = before.replace(
    /(<!-- simulator -->\n)[\s\S]*?(<!-- \/simulator -->)/,
    (_, begin, end) => `${begin}\n${text}\n\n${end}`,
  )
  if (after === before && !before.includes(text)) throw new Error('docs/slices.md has no <!-- simulator --> markers')
  writeFileSync(file, after)
} else console.log(text)
