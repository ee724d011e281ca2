/** A file of `bench slice-cost` as a section: what a slice adds, and whether it is a constant or a part of the step. */
import { figure, percent, table } from '../markdown.js'
import type { SliceCostResult, SliceCostRow, Where } from '../slice-cost/bench.js'
import { head } from './head.js'

const placeOf = ({ sms, where }: { readonly sms: number; readonly where: Where }) =>
  where === 'device' ? `${sms} SMs, all` : where === 'slice' ? `${sms} SMs` : `${sms} SMs by a cap`

/** One fit in words; a cost is called what most of it is at a step of 300 µs, the decode step in question. */
function sentence({ sms, where, how, constantUs, part, worst }: SliceCostResult['fits'][number]): string {
  const proportional = 300 * part
  const kind =
    Math.abs(constantUs) + Math.abs(proportional) < 3
      ? 'next to nothing'
      : Math.abs(constantUs) > Math.abs(proportional)
        ? 'mostly a constant: launching'
        : 'mostly a part of the step: bandwidth or arithmetic'
  return `${placeOf({ sms, where })}, ${how}: ${constantUs.toFixed(2)} µs and ${percent(part)} of the step; ${kind} (furthest off ${percent(worst)})`
}

export function sliceCostSection(file: string, result: SliceCostResult): string {
  const { rows, probes, fits, failed } = result
  const wholeOf = (row: SliceCostRow) =>
    rows.find((each) => each.where === 'device' && each.shape === row.shape && each.tokens === row.tokens)
  const body = rows.map((row) => {
    const whole = wholeOf(row)
    const against = (of: (row: SliceCostRow) => number) =>
      row.where === 'device' || whole === undefined
        ? of(row).toFixed(2)
        : `${of(row).toFixed(2)} (${figure(of(row) - of(whole), 2)})`
    return [
      row.shape,
      String(row.tokens),
      placeOf(row),
      against((r) => r.graphUs),
      against((r) => r.eagerUs),
      against((r) => r.phasesUs.router),
      against((r) => r.phasesUs.experts),
      against((r) => r.phasesUs.combine),
      against((r) => r.phasesUs.total),
    ]
  })
  const probed = probes.map((p) => [
    placeOf(p),
    p.eagerLaunchUs.toFixed(2),
    p.nodeUs.toFixed(2),
    p.graphUs.toFixed(2),
    p.gigabytesPerSecond.toFixed(0),
  ])
  const lost = failed.map(({ sms, why }) => `- On ${sms} SMs: ${why}.`)
  return `${head(file, result.environment, result.what, [`seed ${result.seed}`])}

${[...fits.map((fit) => `- ${sentence(fit)}.`), ...lost].join('\n')}

Microseconds; in brackets what the slice adds. Phases are of single steps, launched one operation at a time.

${table(['shape', 'tokens', 'place', 'by graph', 'eager', 'router', 'experts', 'combine', 'single step'], body, 3)}

Kernels of nothing, one behind another, and one that only reads:

${table(['place', 'a launch µs', 'a node µs', 'a graph µs', 'GB/s'], probed)}
`
}
