/**
 * `bench router`: choice, weights and buckets alone, from logits that are there, beside PyTorch's softmax, top-k and sort. A call is
 * shorter than a launch, so ours and the peers' are timed as nodes of a graph, one behind another.
 */
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { type Cell, cellName } from '../layer/cells.js'
import { LogitsFolder, runRouterPeers } from '../peers.js'
import { timeByGraph } from '../timing.js'
import { type Counted, countBytes } from './counters.js'
import { asCell, routerCalls } from './router-calls.js'
import { checkRouted } from './router-check.js'

export interface RouterBenchOptions {
  readonly device: 'cpu' | 'cuda'
  readonly routers: readonly { readonly experts: number; readonly topK: number }[]
  readonly tokens: readonly number[]
  /** Run the peers as well. */
  readonly peers: boolean
  /** Measure the bytes that move, by ncu. */
  readonly counters: boolean
  readonly budgetMs: number
  readonly seed: number
  readonly python?: string
  readonly onProgress: (line: string) => void
}

export interface RouterRow {
  readonly experts: number
  readonly topK: number
  readonly tokens: number
  readonly nexusUs: number
  readonly nexusIntervalUs: readonly [low: number, high: number]
  /** Of a routing weight, to float64. */
  readonly weightError: number
  /** What must move: tokens · (4E + 8k) in one pass, tokens · (12E + 12k) where softmax, top-k and counting are kernels of their own. */
  readonly bytes: { readonly onePass: number; readonly separate: number }
  /** Moved between the L2 cache and the SMs in a call, as counted; `null` where it was not. */
  readonly countedBytes: number | null
  /** What a call may take, in microseconds; `null` without an aim. */
  readonly aimUs: number | null
  readonly peers: Readonly<Record<string, number>>
}

export interface RouterBenchResult {
  readonly kind: 'router'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly peersError: string | null
  /** Why no bytes were counted; `null` where they were. */
  readonly countersReason: string | null
  readonly rows: readonly RouterRow[]
}

const aimOf = (experts: number, tokens: number) =>
  experts > 128 ? null : tokens <= 512 ? 6 : tokens <= 16384 ? 12 : null

export async function routerBench(options: RouterBenchOptions): Promise<RouterBenchResult> {
  const { device, routers, tokens, peers, counters, seed, onProgress } = options
  const folder = new LogitsFolder()
  const rows: RouterRow[] = []
  const cells = routers.flatMap(({ experts, topK }) => tokens.map((n) => asCell(experts, topK, n)))
  let peersError: string | null = null
  let counted: Counted = { bytes: new Map(), reason: 'not asked for (--counters)' }
  try {
    for (const cell of cells) {
      const row = await measure(cell, folder, options)
      rows.push(row)
      onProgress(`${row.experts} experts, top ${row.topK}, ${row.tokens} tokens: ${row.nexusUs.toFixed(2)} us`)
    }
    if (counters) counted = await countBytes(cells, device, onProgress)
    if (peers) {
      try {
        const times = await runRouterPeers({ ...options, cells, folder, budgetSeconds: 120 })
        const without = cells.filter((cell) => !times.has(cellName(cell))).length
        if (without > 0) peersError = `they gave no times for ${without} of ${cells.length} cells`
        for (const [i, cell] of cells.entries()) {
          const row = rows[i]
          if (row) rows[i] = { ...row, peers: times.get(cellName(cell)) ?? {} }
        }
      } catch (error) {
        peersError = errorText(error)
      }
    }
  } finally {
    folder.dispose()
  }
  return {
    kind: 'router',
    what: 'softmax, top-k, renormalise and buckets from float32 logits; a call as a node of a graph, medians',
    environment: environment(device),
    seed,
    peersError,
    countersReason: counted.reason,
    rows: rows.map((row, i) => {
      const cell = cells[i]
      return { ...row, countedBytes: (cell && counted.bytes.get(cellName(cell))) ?? null }
    }),
  }
}

async function measure(cell: Cell, folder: LogitsFolder, options: RouterBenchOptions): Promise<RouterRow> {
  const { shape, tokens } = cell
  const { experts, topK } = shape
  const { host, calls, stream, dispose } = routerCalls(cell, options.device, options.seed)
  try {
    folder.write(cell, host)
    const [first] = calls
    const [logits] = host
    if (!first || !logits) throw new RangeError('inputs: expected at least one, got none')
    const weightError = await checkRouted(first.out, logits)
    const timing = await timeByGraph(
      stream,
      calls.map(({ run }) => run),
      { budgetMs: options.budgetMs },
    )
    return {
      experts,
      topK,
      tokens,
      nexusUs: timing.medianUs,
      nexusIntervalUs: timing.intervalUs,
      weightError,
      bytes: { onePass: tokens * (4 * experts + 8 * topK), separate: tokens * (12 * experts + 12 * topK) },
      countedBytes: null,
      aimUs: aimOf(experts, tokens),
      peers: {},
    }
  } finally {
    dispose()
  }
}
