/**
 * docs/benchmarks.md, written from the result files so that no number in it was ever typed. `nexus-bench docs` writes it, a test
 * compares it with what the files say.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { LayerBenchResult } from './layer-bench.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))
export const resultsFolder = join(root, 'apps/bench/results')
export const benchmarksPage = join(root, 'docs/benchmarks.md')

const intro = `# Benchmarks

Written by \`npm run bench -- docs\` from the files in [apps/bench/results](../apps/bench/results/README.md); do not edit.

*Limit* is the physical bound: the larger of the bytes that must move (weights of the experts that were hit, input, output) at
4.3 TB/s and the arithmetic at 790 TFLOP/s, both measured on an H200. *Error* is relative to a float32 layer with the same weights.
A ratio above 1 against a peer means that Nexus is faster.
`

/** One result file as a section. */
export function layerSection(file: string, result: LayerBenchResult): string {
  const { environment: e, rows } = result
  const peers = [...new Set(rows.flatMap((r) => Object.keys(r.peers)))]
  const head = ['shape', 'tokens', 'skew', 'limit µs', 'Nexus µs', '× limit', 'error', ...peers.map((p) => `÷ ${p}`)]
  const body = rows.map((r) => [
    r.shape,
    String(r.tokens),
    String(r.skew),
    r.limitUs.toFixed(1),
    r.nexusUs.toFixed(1),
    r.ratio.toFixed(2),
    r.relativeError.toExponential(1),
    ...peers.map((p) => {
      const us = r.peers[p]
      return us === undefined ? 'n/a' : `${(us / r.nexusUs).toFixed(2)} (${us.toFixed(1)} µs)`
    }),
  ])
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  const table = [line(head), line(head.map((_, i) => (i === 0 ? '---' : '---:'))), ...body.map(line)].join('\n')
  const slower = rows.filter((r) => Object.values(r.peers).some((us) => us < r.nexusUs)).length
  return `## ${file}

${e.device}, driver ${e.driver ?? 'n/a'}, CUDA ${e.cudaRuntime ?? 'n/a'}, Node ${e.node}, ${e.date.slice(0, 10)}, seed ${result.seed}.
${result.what}.
${slower} of ${rows.length} cells are slower than the best of the peers that ran beside them.

${table}
`
}

/** The whole page. */
export function renderBenchmarks(folder: string): string {
  const files = readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .sort()
  const sections = files.map((name) =>
    layerSection(name, JSON.parse(readFileSync(join(folder, name), 'utf8')) as LayerBenchResult),
  )
  return [intro, ...sections].join('\n')
}

/** Writes the page; returns its path. */
export function writeBenchmarks(): string {
  writeFileSync(benchmarksPage, renderBenchmarks(resultsFolder))
  return benchmarksPage
}
