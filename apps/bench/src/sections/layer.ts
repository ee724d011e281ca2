/** A file of `bench layer` as a section, and as the table of a terminal. */
import { isScaled } from '../layer/anchors.js'
import type { LayerBenchResult } from '../layer/bench.js'
import { invarianceVerdict, standingOf, verdict } from '../layer/standing.js'
import { figure, table } from '../markdown.js'
import { textTable } from '../text-table.js'
import { head } from './head.js'

const yesNo = (met: boolean | null) => (met === null ? 'n/a' : met ? 'yes' : '**no**')

/** Limits and aims are a GPU's. */
const onGpu = ({ environment }: LayerBenchResult) => environment.driver !== null

/** Cell, limit, ours (in one graph, and by a launch a step), ratio, best peer, best ÷ ours, aim, met; and the sentences below it. */
export function layerTable(result: LayerBenchResult): string {
  const { rows } = result
  const aimed = onGpu(result)
  const columns = [
    'shape',
    'tokens',
    'skew',
    'limit us',
    'ours us',
    'a launch',
    'ratio',
    'best us',
    'best/ours',
    'aim',
    'met',
    'best peer',
  ]
  const body = rows.map((row) => {
    const { best, gain, aim, met } = standingOf(row, aimed)
    return [
      row.shape,
      String(row.tokens),
      String(row.skew),
      row.limitUs.toFixed(1),
      row.nexusUs.toFixed(1),
      figure(row.nexusStepUs, 1),
      row.ratio.toFixed(2),
      figure(best?.us, 1),
      figure(gain, 2),
      figure(aim, 2),
      met === null ? '' : met ? 'yes' : 'NO',
      best?.name ?? '-',
    ]
  })
  const said = [...verdict(rows, aimed), invarianceVerdict(rows)].filter((sentence) => sentence !== '')
  return `${textTable(columns, body, 1)}\n\n${said.join('\n')}`
}

export function layerSection(file: string, result: LayerBenchResult): string {
  const { environment, rows, failed = [] } = result
  const aimed = onGpu(result)
  const peers = [...new Set(rows.flatMap((r) => Object.keys(r.peers)))].sort(
    (a, b) => Number(isScaled(a)) - Number(isScaled(b)),
  )
  // The first files have one way of launching.
  const two = rows.some(({ nexusStepUs }) => nexusStepUs !== undefined)
  const ways = two
    ? "\n*Nexus µs*, by which all is compared, is a step of one graph that holds the steps of all inputs, as the peers are timed: what a model gets that records its layers together. *A launch a step* is the same step by the layer's own cache of graphs, whose graph takes any number of tokens and any tensors: it pays for a launch, and for the node that says which.\n"
    : ''
  const columns = [
    'shape',
    'tokens',
    'skew',
    'limit µs',
    'Nexus µs',
    '× limit',
    'aim',
    'met',
    ...(two ? ['a launch a step µs'] : []),
    'with router µs',
    'invariant µs',
    'error',
  ]
  const body = rows.map((r) => {
    const { best, gain, aim, met } = standingOf(r, aimed)
    return [
      r.shape,
      String(r.tokens),
      String(r.skew),
      r.limitUs.toFixed(1),
      r.nexusUs.toFixed(1),
      r.ratio.toFixed(2),
      figure(aim, 2),
      yesNo(met),
      ...(two ? [figure(r.nexusStepUs, 1)] : []),
      figure(r.nexusWithRouterUs, 1),
      figure(r.nexusInvariantUs, 1),
      r.relativeError.toExponential(1),
      best === null ? 'n/a' : `${figure(gain, 2)} (${best.name})`,
      ...peers.map((p) => {
        const us = r.peers[p]
        return us === undefined ? 'n/a' : `${(us / r.nexusUs).toFixed(2)} (${us.toFixed(1)} µs)`
      }),
    ]
  })
  const scaled = peers.some(isScaled)
    ? "\nA peer marked *anchor, scaled* did not run in this call: its time is the anchors', times what torch_grouped_mm takes now over what it took there.\n"
    : ''
  const lost = failed.map(({ cell, why }) => `- ${cell}: ${why}`).join('\n')
  return `${head(file, environment, result.what, [`seed ${result.seed}`])}
${[...verdict(rows, aimed), invarianceVerdict(rows)].filter((sentence) => sentence !== '').join('\n')}
${ways}${scaled}
${table([...columns, 'best ÷ ours', ...peers.map((p) => `÷ ${p}`)], body)}
${lost === '' ? '' : `\nWithout a row:\n\n${lost}\n`}`
}
