/** `bench cpu`: the layer on the CPU beside PyTorch's CPU build and OpenBLAS, same machine, same threads, one run. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { cpuThreads, setCpuThreads, systemInfo } from '@nexus/core'
import { environment } from '../environment.js'
import { errorText } from '../error-text.js'
import type { Shape } from '../shapes.js'
import { measureCpuCell } from './cell.js'
import { type PeerHello, PeerServer } from './peer-server.js'
import type { CpuGemmRow, CpuLayerRow, CpuResult } from './result.js'
import { cpuLayers } from './shape-layers.js'

export interface CpuBenchOptions {
  readonly shapes: readonly Shape[]
  readonly tokens: readonly number[]
  /** Threads of both sides; `null`: as many as ours has by default. */
  readonly threads: number | null
  readonly rounds: number
  readonly turnMs: number
  readonly seed: number
  /** The interpreter that has torch; `null`: no peers. */
  readonly python: string | null
  /** A CBLAS library; `null`: its products are not compared. */
  readonly openblas: string | null
  /** Kernels that OpenBLAS is made to use, each beside the others; 'auto' is its own choice. */
  readonly openblasCores: readonly string[]
  readonly onProgress: (line: string) => void
}

/** Of the first core, as Linux has it; `null` where it does not say. */
export function lastLevelCacheBytes(): number | null {
  try {
    const [, size] =
      /^(\d+)K$/.exec(readFileSync('/sys/devices/system/cpu/cpu0/cache/index3/size', 'utf8').trim()) ?? []
    return size === undefined ? null : Number(size) * 1024
  } catch {
    return null
  }
}

const load = () => (loadavg()[0] ?? Number.NaN) / availableParallelism()

async function startPeers(options: CpuBenchOptions, threads: number): Promise<[PeerServer, PeerHello] | string> {
  const { python, openblas, openblasCores } = options
  if (python === null) return 'none were asked for'
  const args = ['--threads', String(threads)]
  if (openblas !== null) args.push('--openblas', openblas, '--openblas-cores', openblasCores.join(','))
  try {
    return await PeerServer.start(python, args)
  } catch (error) {
    return errorText(error)
  }
}

export async function cpuBench(options: CpuBenchOptions): Promise<CpuResult> {
  const { shapes, tokens, onProgress } = options
  if (options.threads !== null) setCpuThreads(options.threads)
  const threads = cpuThreads()
  const began = load()
  const started = await startPeers(options, threads)
  const [peers, hello] = typeof started === 'string' ? [null, null] : started
  const folder = mkdtempSync(join(tmpdir(), 'nexus-bench-cpu-'))
  const remove = () => rmSync(folder, { recursive: true, force: true })
  process.on('exit', remove)
  const cache = lastLevelCacheBytes()
  const layer: CpuLayerRow[] = []
  const gemm: CpuGemmRow[] = []
  try {
    if (hello !== null && hello.threads !== threads) {
      throw new RangeError(`the peers run on ${hello.threads} threads, ours on ${threads}`)
    }
    for (const shape of shapes) {
      const layers = await cpuLayers(shape, options.seed, folder, peers)
      try {
        for (const count of tokens) {
          const cell = await measureCpuCell(layers, {
            ...options,
            tokens: count,
            folder,
            peers,
            peerNames: hello?.peers ?? [],
            libraries: Object.keys(hello?.blas ?? {}),
            lastLevelCacheBytes: cache,
          })
          layer.push(cell.layer)
          gemm.push(...cell.gemm)
          onProgress(progressLine(cell.layer, cell.gemm))
        }
      } finally {
        layers.dispose()
      }
    }
  } finally {
    peers?.dispose()
    process.off('exit', remove)
    remove()
  }
  return {
    kind: 'cpu',
    what:
      'MoE layer from (x, router logits) to y on the CPU, softmax, top-k, renormalise, silu(gate)*up, through the public layer API; peers in the ' +
      'same run with the same threads, weights, inputs and logits, in turns; medians of the rounds, ratios with 95 % intervals over them',
    environment: {
      ...environment('cpu'),
      cpuThreads: threads,
      isa: systemInfo().machine?.cpu.isa ?? 'unknown',
      lastLevelCacheBytes: cache,
      torch: hello?.torch ?? null,
      torchCapability: hello?.capability ?? null,
      blas: hello?.blas ?? {},
      load: [began, load()],
    },
    seed: options.seed,
    rounds: options.rounds,
    peersError: typeof started === 'string' ? started : null,
    layer,
    gemm,
  }
}

function progressLine(row: CpuLayerRow, gemm: readonly CpuGemmRow[]): string {
  const peers = Object.entries(row.peers).map(
    ([name, { us, faster }]) => `${name} ${us.toFixed(0)} (${faster.ratio.toFixed(2)})`,
  )
  const failed = Object.entries(row.failed).map(([name, why]) => `${name} failed: ${why}`)
  const products = gemm.map((g) => `${g.library} ${g.ratio.ratio.toFixed(2)} of ${g.libraryGflops.toFixed(0)} GFLOP/s`)
  return [
    `${row.shape} ${row.tokens} tokens: ${row.nexusUs.toFixed(0)} us (alone ${row.alone.us.toFixed(0)}, bf16 ${row.bf16.us.toFixed(0)}: ${row.bf16.faster.ratio.toFixed(2)})`,
    ...peers,
    ...failed,
    ...products,
  ].join(', ')
}
