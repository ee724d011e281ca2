/** `bench layer`: Nexus and its peers over shapes and token counts, one result file, one table. */
import { environment } from './environment.js'
import { type CellResult, measureCell, ShapeLayers } from './layer-cell.js'
import { weightCopies } from './limits.js'
import { LogitsFolder, runPeers } from './peers.js'
import { resultText, writeWhole } from './result-file.js'
import type { Shape } from './shapes.js'

export interface LayerBenchOptions {
  readonly shapes: readonly Shape[]
  readonly tokens: readonly number[]
  readonly skew: number
  readonly device: 'cpu' | 'cuda'
  readonly peers: readonly string[]
  readonly peerBudgetSeconds: number
  readonly budgetMs: number
  readonly seed: number
  readonly out: string | null
  readonly onProgress: (line: string) => void
}

export interface LayerBenchResult {
  readonly what: string
  readonly environment: ReturnType<typeof environment>
  readonly seed: number
  readonly peersError: string | null
  readonly rows: readonly CellResult[]
}

export async function layerBench(options: LayerBenchOptions): Promise<LayerBenchResult> {
  const folder = new LogitsFolder()
  const rows: CellResult[] = []
  let peersError: string | null = null
  try {
    for (const shape of options.shapes) {
      const layers = await ShapeLayers.create(shape, weightCopies(shape), options.device, options.seed)
      try {
        for (const tokens of options.tokens) {
          const row = await measureCell(layers, tokens, {
            ...options,
            onLogits: (logits) => folder.write(shape, tokens, logits),
          })
          options.onProgress(
            `${row.shape} ${row.tokens} tokens: ${row.nexusUs.toFixed(1)} us, ${row.ratio.toFixed(2)} × limit, ` +
              `error ${row.relativeError.toExponential(1)}, router ${row.phasesUs.router.toFixed(1)} ` +
              `experts ${row.phasesUs.experts.toFixed(1)} combine ${row.phasesUs.combine.toFixed(1)}`,
          )
          rows.push(row)
        }
      } finally {
        layers.dispose()
      }
    }
    if (options.peers.length > 0) peersError = await addPeers(options, folder, rows)
  } finally {
    folder.dispose()
  }
  const result: LayerBenchResult = {
    what:
      'MoE layer from (x, router logits) to y, bf16, softmax, top-k, renormalise, silu(gate)*up; Nexus through the public ' +
      'layer API (eager enqueue, device events around batches of calls), peers by CUDA-graph replay where they can; medians',
    environment: environment(options.device === 'cuda' ? 'cuda:0' : 'cpu'),
    seed: options.seed,
    peersError,
    rows,
  }
  if (options.out !== null) writeWhole(options.out, resultText(result))
  return result
}

/** Fills in the peers' times; returns why not, when they cannot run. */
async function addPeers(options: LayerBenchOptions, folder: LogitsFolder, rows: CellResult[]): Promise<string | null> {
  const { shapes, tokens, peers, peerBudgetSeconds, seed } = options
  try {
    for (const cell of await runPeers(shapes, tokens, peers, folder, peerBudgetSeconds, seed)) {
      const row = rows.find((r) => r.shape === cell.shape && r.tokens === cell.tokens)
      if (row && cell.ok) row.peers[cell.peer] = cell.us
    }
    return null
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

export function layerTable(result: LayerBenchResult): string {
  const names = [...new Set(result.rows.flatMap((r) => Object.keys(r.peers)))]
  const head = [
    'shape',
    'tokens',
    'skew',
    'hit',
    'limit µs',
    'nexus µs',
    '× limit',
    'error',
    ...names.map((n) => `${n} µs`),
  ]
  const body = result.rows.map((r) => [
    r.shape,
    String(r.tokens),
    String(r.skew),
    r.expertsHit.toFixed(1),
    r.limitUs.toFixed(1),
    r.nexusUs.toFixed(1),
    r.ratio.toFixed(2),
    r.relativeError.toExponential(1),
    ...names.map((n) => r.peers[n]?.toFixed(1) ?? '-'),
  ])
  const widths = head.map((h, i) => Math.max(h.length, ...body.map((b) => b[i]?.length ?? 0)))
  return [head, ...body].map((line) => line.map((c, i) => c.padStart(widths[i] ?? 0)).join('  ')).join('\n')
}
