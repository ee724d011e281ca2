/** A file of `bench cpu` as a section: the layer beside PyTorch, its products beside OpenBLAS, bf16 beside f32. */
import type { CpuGemmRow, CpuLayerRow, CpuResult } from '../cpu/result.js'
import { type Faster, leastFaster } from '../cpu/turns.js'
import { figure, table } from '../markdown.js'
import { head } from './head.js'

const interval = (f: Faster) =>
  `${f.ratio.toFixed(2)} (${f.low.toFixed(2)} to ${f.high.toFixed(2)}; ${f.fastest.toFixed(2)})`
const cell = ({ shape, tokens }: { readonly shape: string; readonly tokens: number }) =>
  `${shape} with ${tokens} ${tokens === 1 ? 'token' : 'tokens'}`

function verdict<T extends CpuLayerRow | CpuGemmRow>(
  rows: readonly T[],
  what: string,
  value: (row: T) => number,
  aim: (row: T) => number,
) {
  if (rows.length === 0) return `${what}: not compared.`
  const below = rows.filter((row) => !(value(row) >= aim(row)))
  const worst = Math.min(...rows.map(value)).toFixed(2)
  return below.length === 0
    ? `${what}: in all of ${rows.length} cells, at least ${worst} times.`
    : `${what}: not in ${below.map((row) => `${cell(row)} (${value(row).toFixed(2)})`).join(', ')}.`
}

export function cpuSection(file: string, result: CpuResult): string {
  const { environment: e, layer, gemm } = result
  const names = [...new Set(layer.flatMap((row) => [...Object.keys(row.peers), ...Object.keys(row.failed)]))]
  const peers = e.torch === null ? `no peers: ${result.peersError}` : `torch ${e.torch} (${e.torchCapability})`
  const where = [
    e.cpu,
    `${e.cpuThreads} threads`,
    e.isa,
    peers,
    ...Object.entries(e.blas).map(([name, what]) => `${name}: ${what}`),
    `seed ${result.seed}`,
    `${result.rounds} rounds`,
    `load per core ${e.load.map((l) => l.toFixed(1)).join(' to ')}`,
  ]
  const compared = layer.filter((row) => row.fasterThanBest !== null)
  const decode = layer.filter((row) => row.bf16.aim !== null)
  const layerRows = layer.map((row) => [
    row.shape,
    String(row.tokens),
    row.expertsHit.toFixed(1),
    row.nexusUs.toFixed(0),
    row.alone.us.toFixed(0),
    ...names.map((name) => {
      const peer = row.peers[name]
      return peer === undefined ? 'n/a' : `${interval(peer.faster)}, ${peer.us.toFixed(0)} µs`
    }),
    row.fasterThanBest === null ? 'n/a' : `${row.fasterThanBest.toFixed(2)} of ${row.aim}`,
  ])
  const gemmRows = gemm.map((row) => [
    row.shape,
    String(row.tokens),
    row.library,
    row.nexusGflops.toFixed(0),
    row.libraryGflops.toFixed(0),
    `${interval(row.ratio)} of ${row.aim}`,
  ])
  const narrowRows = layer.map(({ shape, tokens, bf16, nexusUs }) => [
    shape,
    String(tokens),
    (bf16.touchedBytes / 2 ** 20).toFixed(0),
    nexusUs.toFixed(0),
    bf16.us.toFixed(0),
    `${interval(bf16.faster)}${bf16.aim === null ? '' : ` of ${bf16.aim}`}`,
    bf16.difference.toExponential(1),
  ])
  const failures = layer.flatMap((row) =>
    Object.entries(row.failed).map(([name, why]) => `${name}, ${cell(row)}: ${why}.`),
  )
  return `${head(file, e, result.what, where)}
${verdict(
  compared,
  'As fast as the best peer (up to 128 tokens; 0.9 of it beyond)',
  (row) => row.fasterThanBest ?? 0,
  (row) => row.aim,
)}
${verdict(
  gemm,
  'Products at 0.8 of OpenBLAS’s rate',
  (row) => leastFaster(row.ratio),
  (row) => row.aim,
)}
${verdict(
  decode,
  'bf16 decodes at 1.7 times the f32 rate, weights beyond the last-level cache',
  (row) => leastFaster(row.bf16.faster),
  (row) => row.bf16.aim ?? 0,
)}
${failures.length === 0 ? '' : `Peers that could not be timed: ${failures.join(' ')}\n`}
Ratios are of medians, with their interval and, behind the semicolon, that of the fastest rounds; an aim is held against the lesser of the two.

The layer, f32; *alone*: each result waited for before the next call; a peer's column has its time over ours:

${table(['shape', 'tokens', 'hit', 'Nexus µs', 'alone µs', ...names, 'best peer ÷ Nexus'], layerRows)}

The experts' products: ours with gather and activation, the library's one \`sgemm\` per expert and matrix on rows that lie sorted:

${gemm.length === 0 ? 'Not compared.' : table(['shape', 'tokens', 'library', 'Nexus GFLOP/s', 'GFLOP/s', 'Nexus ÷ library'], gemmRows, 1)}

bf16 beside f32, with the MiB of bf16 weights that the inputs touch (last-level cache: ${figure(e.lastLevelCacheBytes === null ? null : e.lastLevelCacheBytes / 2 ** 20, 0)} MiB):

${table(['shape', 'tokens', 'MiB', 'f32 µs', 'bf16 µs', 'f32 ÷ bf16', 'difference'], narrowRows)}
`
}
