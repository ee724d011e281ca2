/**
 * Runs the Python peers (apps/bench/peers/bench_peers.py) as a child process over the same shapes, token counts and
 * logits. They need torch, triton and transformers on the machine; the project itself never does.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Shape } from './shapes.js'

const script = fileURLToPath(new URL('../peers/bench_peers.py', import.meta.url))

export interface PeerCell {
  shape: string
  tokens: number
  peer: string
  /** Median microseconds of a CUDA-graph replay, or of an eager call where the peer cannot be captured. */
  us: number
  relativeError: number
  ok: boolean
}

/** Where the logits of the cells are kept for the peers to read. */
export class LogitsFolder {
  readonly path = mkdtempSync(join(tmpdir(), 'nexus-bench-'))
  write(shape: Shape, tokens: number, logits: readonly Float32Array[]): void {
    logits.forEach((l, v) => {
      const bytes = new Uint8Array(l.buffer, l.byteOffset, l.byteLength)
      writeFileSync(join(this.path, `${shape.name}-${tokens}-${v}.f32`), bytes)
    })
  }
  dispose(): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

/** Resolves with the peers' cells; rejects with the script's own words when it cannot run. */
export async function runPeers(
  shapes: readonly Shape[],
  tokens: readonly number[],
  peers: readonly string[],
  logits: LogitsFolder,
  budgetSeconds: number,
  seed: number,
): Promise<PeerCell[]> {
  const json = join(logits.path, 'peers.json')
  const args = [script, '--no-router', '--scope', 'layer', '--json', json, '--seed', String(seed)]
  args.push('--tokens', tokens.join(','), '--peers', peers.join(','), '--budget', String(budgetSeconds))
  args.push('--logits', logits.path)
  for (const s of shapes) args.push('--shape', [s.name, s.hidden, s.inter, s.experts, s.topK].join(':'))
  const code = await new Promise<number>((resolve, reject) => {
    const child = spawn('python3', args, { stdio: ['ignore', process.stderr, process.stderr] })
    child.on('error', (e) => reject(new Error(`the peers need python3: ${e.message}`)))
    child.on('close', (c) => resolve(c ?? 1))
  })
  if (code !== 0) throw new Error(`the peers ended with ${code}`)
  const parsed: unknown = JSON.parse(readFileSync(json, 'utf8'))
  return readCells(parsed)
}

function readCells(parsed: unknown): PeerCell[] {
  const results = (parsed as { results?: unknown }).results
  if (!Array.isArray(results)) throw new Error('the peers wrote no results')
  const cells: PeerCell[] = []
  for (const r of results as Record<string, unknown>[]) {
    const key = r.key
    if (!Array.isArray(key) || r.status !== 'ok') continue
    const us = r.us_graph ?? r.us_eager
    if (typeof us !== 'number') continue
    cells.push({
      shape: String(key[0]),
      tokens: Number(key[1]),
      peer: String(key[2]),
      us,
      relativeError: Number(r.err),
      ok: r.ok === true,
    })
  }
  return cells
}
