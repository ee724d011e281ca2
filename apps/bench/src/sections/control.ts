/** A file of `bench control` as a section: each cost beside what it may be. */
import { figure, percent, table } from '../markdown.js'
import type { ControlResult } from '../scheduling/control.js'
import { head, stepName } from './head.js'

const kept = (value: number, bound: number | null) => (bound === null ? 'n/a' : value <= bound ? 'yes' : '**no**')

export function controlSection(file: string, result: ControlResult): string {
  const { host, launch, watched } = result
  const over = [
    ...host.filter(({ medianUs, boundUs }) => boundUs !== null && medianUs > boundUs).map(({ what }) => what),
    ...watched.filter((w) => w.addedUs > w.allowedUs).map((w) => `watching ${stepName(w)}`),
  ]
  const hostRows = host.map((h) => [
    h.what,
    h.medianUs.toFixed(2),
    h.p99Us.toFixed(2),
    h.boundUs === null ? 'n/a' : `under ${h.boundUs}`,
    kept(h.medianUs, h.boundUs),
  ])
  const watchedRows = watched.map((w) => [
    w.shape,
    String(w.tokens),
    w.bareUs.toFixed(2),
    w.watchedUs.toFixed(2),
    w.addedUs.toFixed(2),
    w.allowedUs.toFixed(2),
    `${figure(w.ratio.ratio, 4)} (${figure(w.ratio.low, 4)} to ${figure(w.ratio.high, 4)})`,
    String(w.ratio.pairs),
    kept(w.addedUs, w.allowedUs),
  ])
  const apart = watched.flatMap(({ shape, tokens, parts }) =>
    parts === undefined
      ? []
      : [
          [
            shape,
            String(tokens),
            parts.hostBareUs.toFixed(2),
            (parts.hostWatchedUs - parts.hostBareUs).toFixed(2),
            parts.deviceBareUs.toFixed(2),
            (parts.deviceWatchedUs - parts.deviceBareUs).toFixed(2),
          ],
        ],
  )
  const whose = `
Whose time that is: what queueing a step costs the host, and what a step costs the device behind steps that were queued before it, where the host
is ahead already.

${table(['shape', 'tokens', 'host, bare µs', 'added µs', 'device, bare µs', 'added µs'], apart)}
`
  const gain = launch.eagerUs / launch.perNodeUs
  return `${head(file, result.environment, result.what)}
${over.length === 0 ? 'Every cost that has a bound is within it.' : `Over its bound: ${over.join('; ')}.`}

${table(['host time', 'median µs', 'p99 µs', 'bound µs', 'kept'], hostRows)}

A launch costs the host ${launch.eagerUs.toFixed(2)} µs alone and ${launch.perNodeUs.toFixed(3)} µs as one of ${launch.nodes} nodes of a graph (${launch.graphUs.toFixed(1)} µs for all): ${gain.toFixed(1)} times less.

Device time of a profiled and metered step beside a bare one:

${table(['shape', 'tokens', 'bare µs', 'watched µs', 'added µs', 'allowed µs', 'watched ÷ bare', 'pairs', 'kept'], watchedRows)}

What watching adds is between ${percent(Math.min(...watched.map((w) => w.addedUs / w.bareUs)), 2)} and ${percent(Math.max(...watched.map((w) => w.addedUs / w.bareUs)), 2)} of a step.
${apart.length === 0 ? '' : whose}`
}
