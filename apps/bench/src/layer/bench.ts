/** `bench layer`: Nexus and its peers, cell by cell; one result file. */
import { resolveDevice } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { weightCopies } from '../limits.js'
import { LogitsFolder, runPeers } from '../peers.js'
import { withAnchors } from './anchors.js'
import { type Cell, cellName } from './cells.js'
import { type LayerRow, measureCell } from './measure.js'
import { ShapeLayers } from './shape-layers.js'

export interface LayerBenchOptions {
  readonly cells: readonly Cell[]
  readonly device: 'cpu' | 'cuda'
  readonly peers: readonly string[]
  readonly peerBudgetSeconds: number
  readonly budgetMs: number
  readonly seed: number
  /** Time one graph of all steps, and recorded steps one by one; else steps that are launched one operation at a time. @default true */
  readonly graphs?: boolean
  /** Time batch-invariant layers too. @default true */
  readonly invariance?: boolean
  /** Runs the peers' scripts. @default 'python3' */
  readonly python?: string
  readonly onProgress: (line: string) => void
  /** Called with our own rows before the peers run, which may take minutes. */
  readonly onOwn?: (result: LayerBenchResult) => void
}

export interface LayerBenchResult {
  readonly kind?: 'layer'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly peersError: string | null
  readonly rows: readonly LayerRow[]
  /** Cells that gave no row, and why. */
  readonly failed?: readonly { readonly cell: string; readonly why: string }[]
  /** When the files were measured that this one was merged from. */
  readonly mergedFrom?: readonly string[]
}

export async function layerBench(options: LayerBenchOptions): Promise<LayerBenchResult> {
  // What is not there is one error, not one for each cell.
  resolveDevice(options.device)
  const folder = new LogitsFolder()
  try {
    const own = await measureCells(options, folder)
    if (options.peers.length === 0) return own
    options.onOwn?.({ ...own, peersError: 'the peers had not run when this was written' })
    const { rows, peersError } = await withPeers(options, folder, own.rows)
    return { ...own, rows: rows.map(withAnchors), peersError }
  } finally {
    folder.dispose()
  }
}

/** Ours alone. */
async function measureCells(options: LayerBenchOptions, folder: LogitsFolder): Promise<LayerBenchResult> {
  const { cells, device, seed, graphs = true, invariance = true, onProgress } = options
  const rows: LayerRow[] = []
  const failed: { cell: string; why: string }[] = []
  const lost = (cell: Cell, error: unknown) => {
    failed.push({ cell: cellName(cell), why: errorText(error) })
    onProgress(`${cellName(cell)}: ${errorText(error)}`)
  }
  for (const shape of new Set(cells.map((cell) => cell.shape))) {
    const own = cells.filter((cell) => cell.shape === shape)
    const started = new Set<Cell>()
    try {
      const layers = await ShapeLayers.create(shape, weightCopies(shape), device, seed, graphs, invariance)
      try {
        for (const cell of own) {
          started.add(cell)
          try {
            const onLogits = (logits: readonly Float32Array[]) => folder.write(cell, logits)
            const row = await measureCell(layers, cell, { ...options, onLogits })
            rows.push(row)
            onProgress(line(row))
          } catch (error) {
            lost(cell, error)
          }
        }
      } finally {
        layers.dispose()
      }
    } catch (error) {
      // No memory for a shape's weights, say: the others are measured.
      for (const cell of own) if (!started.has(cell)) lost(cell, error)
    }
  }
  const how = graphs ? 'one graph of the steps of all inputs' : 'steps launched one operation at a time'
  return {
    kind: 'layer',
    what:
      'MoE layer from (x, router logits) to y, bf16, softmax, top-k, renormalise, silu(gate)*up; Nexus through the public ' +
      `layer API (${how}, device events around batches of launches), peers by one CUDA graph of all their calls where they can; medians`,
    environment: environment(device),
    seed,
    peersError: null,
    rows,
    failed,
  }
}

const line = (row: LayerRow) =>
  `${row.shape} ${row.tokens}${row.skew === 0 ? '' : ` skew ${row.skew}`}: ${row.nexusUs.toFixed(1)} us, ${row.ratio.toFixed(2)} × limit, ` +
  `a launch a step ${row.nexusStepUs?.toFixed(1) ?? '-'}, with router ${row.nexusWithRouterUs?.toFixed(1)}, invariant ${row.nexusInvariantUs?.toFixed(1) ?? '-'}, error ${row.relativeError.toExponential(1)}, router ${row.phasesUs.router.toFixed(1)} ` +
  `experts ${row.phasesUs.experts.toFixed(1)} combine ${row.phasesUs.combine.toFixed(1)}`

/** The rows with the peers' times, and what did not run of them. */
async function withPeers(
  options: LayerBenchOptions,
  folder: LogitsFolder,
  own: readonly LayerRow[],
): Promise<Pick<LayerBenchResult, 'rows' | 'peersError'>> {
  const { cells, peers, peerBudgetSeconds, seed, python, onProgress } = options
  // Of a cell without a row there are no logits either.
  const ran = cells.filter((cell) => own.some((row) => isOf(row, { ...cell, shape: cell.shape.name })))
  try {
    const { measured, lost } = await runPeers({
      cells: ran,
      peers,
      folder,
      budgetSeconds: peerBudgetSeconds,
      seed,
      python,
    })
    for (const { peer, shape, tokens, relativeError } of measured.filter(({ ok }) => !ok)) {
      onProgress(`${peer}, ${shape} ${tokens}: its output is wrong (${relativeError}), its time is left out`)
    }
    const rows = own.map((row) => {
      const times = measured.filter((each) => each.ok && isOf(row, each)).map(({ peer, us }) => [peer, us] as const)
      return { ...row, peers: Object.fromEntries(times) }
    })
    return { rows, peersError: lost.length === 0 ? null : lost.join('; ') }
  } catch (error) {
    return { rows: own, peersError: errorText(error) }
  }
}

type Place = Pick<LayerRow, 'shape' | 'tokens' | 'skew'>
const isOf = (row: Place, other: Place) =>
  row.shape === other.shape && row.tokens === other.tokens && row.skew === other.skew
