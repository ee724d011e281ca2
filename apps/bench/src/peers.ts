/**
 * Runs the Python peers (apps/bench/peers) as child processes over the same cells and logits. They need torch, triton and transformers on the
 * machine; the project itself never does.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Cell, cellName } from './layer/cells.js'
import { peersFolder } from './paths.js'
import { shapeArgument } from './shapes.js'

const script = join(peersFolder, 'bench_peers.py')

export interface PeerCell {
  readonly shape: string
  readonly tokens: number
  readonly skew: number
  readonly peer: string
  /** Median microseconds of a CUDA-graph replay, or of an eager call where the peer cannot be captured. */
  readonly us: number
  readonly relativeError: number
  readonly ok: boolean
}

/** A peer script knows a shape at a skew as a shape of its own, for its logits are other ones. */
const aliasOf = ({ shape, skew }: Pick<Cell, 'shape' | 'skew'>) => (skew === 0 ? shape.name : `${shape.name}@${skew}`)

/** Where the logits of the cells are kept for the peers to read; gone when the process ends, whatever ends it. */
export class LogitsFolder {
  readonly path = mkdtempSync(join(tmpdir(), 'nexus-bench-'))
  readonly #remove = () => rmSync(this.path, { recursive: true, force: true })

  constructor() {
    process.on('exit', this.#remove)
  }

  /** What the scripts call a cell's shape. */
  nameOf(cell: Cell): string {
    return aliasOf(cell)
  }

  write(cell: Cell, logits: readonly Float32Array[]): void {
    logits.forEach((l, v) => {
      const bytes = new Uint8Array(l.buffer, l.byteOffset, l.byteLength)
      writeFileSync(join(this.path, `${aliasOf(cell)}-${cell.tokens}-${v}.f32`), bytes)
    })
  }

  dispose(): void {
    process.off('exit', this.#remove)
    this.#remove()
  }
}

/** A child that does not outlive this process, and neither does what it starts itself: they are a process group. */
export function spawnPeer(python: string, args: readonly string[], stdio: 'passed' | 'piped'): ChildProcess {
  const to = stdio === 'piped' ? (['pipe', 'pipe', 'inherit'] as const) : (['ignore', 2, 2] as const)
  const child = spawn(python, args, { stdio: [...to], detached: true })
  const end = () => endPeer(child)
  process.on('exit', end)
  child.on('close', () => process.off('exit', end))
  return child
}

/** Ends a peer and what it has started. Twice is fine. */
export function endPeer({ pid, exitCode, signalCode }: ChildProcess): void {
  if (pid === undefined || exitCode !== null || signalCode !== null) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    // It has just ended.
  }
}

/** What the script ends with where trying again is of no use. */
const noGpu = 4

/** Resolves when the script has ended well; rejects with what it said of itself. */
async function ended(child: ChildProcess): Promise<void> {
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', (e) => reject(new Error(`the peers need python3: ${e.message}`)))
    child.on('close', resolve)
  })
  if (code === noGpu) throw new Error('the peers found no torch, or no GPU that it can use')
  if (code !== 0) throw new Error(`the peers ended with ${code}`)
}

export interface PeerOptions {
  readonly cells: readonly Cell[]
  /** Empty with `router`. */
  readonly peers: readonly string[]
  readonly folder: LogitsFolder
  readonly budgetSeconds: number
  readonly seed: number
  readonly python?: string | undefined
  /** Time routers instead of layers. */
  readonly router?: boolean
}

/** Runs the script, and returns what it wrote: an entry for each cell and peer. */
async function runScript(options: PeerOptions): Promise<readonly Record<string, unknown>[]> {
  const { cells, peers, folder, budgetSeconds, seed, python = 'python3', router = false } = options
  const json = join(folder.path, 'peers.json')
  const args = [script, '--scope', 'layer', '--json', json, '--seed', String(seed), '--budget', String(budgetSeconds)]
  args.push('--peers', router ? 'none' : peers.join(','), ...(router ? [] : ['--no-router']), '--logits', folder.path)
  const aliases = new Map(cells.map((cell) => [aliasOf(cell), cell]))
  for (const [alias, { shape }] of aliases) {
    const tokens = cells.filter((cell) => aliasOf(cell) === alias).map((cell) => cell.tokens)
    args.push('--shape', shapeArgument(shape, alias), '--tokens-of', `${alias}=${tokens.join(',')}`)
  }
  await ended(spawnPeer(python, args, 'passed'))
  const { results } = JSON.parse(readFileSync(json, 'utf8')) as { results?: unknown }
  if (!Array.isArray(results)) throw new Error('the peers wrote no results')
  return results as Record<string, unknown>[]
}

/** What a key of the results is of. */
function cellOf(key: unknown, cells: readonly Cell[]): Cell | null {
  if (!Array.isArray(key)) return null
  return cells.find((cell) => aliasOf(cell) === key[0] && cell.tokens === key[1]) ?? null
}

/**
 * Resolves with the peers' cells, and with what did not run in words; rejects with the script's own words when it cannot run.
 */
export async function runPeers(
  options: PeerOptions,
): Promise<{ readonly measured: PeerCell[]; readonly lost: string[] }> {
  const { cells, peers } = options
  const measured: PeerCell[] = []
  const failures = new Map<string, { cells: number; why: string }>()
  const seen = new Set<string>()
  for (const { key, status, us_graph, us_eager, err, ok, detail } of await runScript(options)) {
    const cell = cellOf(key, cells)
    if (cell === null) continue
    const peer = String((key as unknown[])[2])
    seen.add(`${peer} ${cellName(cell)}`)
    const us = us_graph ?? us_eager
    const { shape, tokens, skew } = cell
    if (status === 'ok' && typeof us === 'number') {
      measured.push({ shape: shape.name, tokens, skew, peer, us, relativeError: Number(err), ok: ok === true })
    } else if (status !== 'skipped') {
      const before = failures.get(peer)
      failures.set(peer, { cells: (before?.cells ?? 0) + 1, why: before?.why ?? String(detail ?? status) })
    }
  }
  const lost = [...failures].map(
    ([peer, { cells: n, why }]) => `${peer} failed in ${n} of ${cells.length} cells (${why})`,
  )
  // A peer that crashed is dropped by the script, and what its budget does not reach is left out: both without a word in the results.
  for (const peer of peers) {
    const missing = cells.filter((cell) => !seen.has(`${peer} ${cellName(cell)}`)).length
    if (missing > 0) lost.push(`${peer} was not tried in ${missing} of ${cells.length} cells`)
  }
  return { measured, lost }
}

/** Microseconds of the peers' routers, by cell name and peer. */
export async function runRouterPeers(
  options: Omit<PeerOptions, 'peers'>,
): Promise<Map<string, Record<string, number>>> {
  const measured = new Map<string, Record<string, number>>()
  for (const { key, status, rows } of await runScript({ ...options, peers: [], router: true })) {
    const cell = cellOf(key, options.cells)
    if (cell === null || status !== 'ok' || typeof rows !== 'object' || rows === null) continue
    const times: Record<string, number> = {}
    for (const [name, { us_graph }] of Object.entries(rows as Record<string, { us_graph?: unknown }>)) {
      if (typeof us_graph === 'number') times[name.trim()] = us_graph
    }
    measured.set(cellName(cell), times)
  }
  return measured
}
