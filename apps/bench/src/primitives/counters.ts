/**
 * Bytes that a call moves, counted by the hardware: NVIDIA's profiler runs this command anew with one call of each router, and its sums come
 * back. A figure that cannot be had is missing, with the reason.
 */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { combine, Tensor } from '@nexus/core'
import { type Cell, cellName } from '../layer/cells.js'
import { routerCalls } from './router-calls.js'

export interface Counted {
  /** By cell name. */
  readonly bytes: ReadonlyMap<string, number>
  readonly reason: string | null
}

/** Reads and writes between the SMs and the L2 cache. */
const metric = 'lts__t_bytes.sum'

/** The kernels that route, and the one that stands behind each call as a mark (see {@link routeOnce}). */
const kernels = 'regex:route|combine'
const mark = 'combine'

const places = ['ncu', '/usr/local/cuda/bin/ncu']

/**
 * Sums of the metric over the kernels before each mark.
 * @param csv what `ncu --csv --page raw` printed: notes, a line of names, one of units, one for each kernel
 * @throws Error when no kernel is in it
 */
export function sumsOf(csv: string): number[] {
  const lines = csv.split('\n').filter((line) => line.startsWith('"'))
  const fields = (line: string) => [...line.matchAll(/"((?:[^"]|"")*)"/g)].map(([, text = '']) => text)
  const [names = [], units = [], ...rows] = lines.map(fields)
  const [value, name] = [names.indexOf(metric), names.indexOf('Kernel Name')]
  if (value < 0 || name < 0 || rows.length === 0) throw new Error('ncu counted no kernel')
  const scale = { byte: 1, Kbyte: 1e3, Mbyte: 1e6, Gbyte: 1e9 }[units[value] ?? '']
  if (scale === undefined) throw new Error(`ncu gives ${metric} in ${units[value]}, which is not known`)
  const sums: number[] = []
  let sum = 0
  for (const row of rows) {
    if (row[name]?.includes(mark)) {
      sums.push(sum)
      sum = 0
    } else sum += Number((row[value] ?? '').replaceAll(',', '')) * scale
  }
  return sums
}

/** One call of each cell's router on the GPU, with a mark behind it: what ncu runs. */
export async function routeOnce(cells: readonly Cell[], seed: number, device: 'cpu' | 'cuda' = 'cuda'): Promise<void> {
  for (const cell of cells) {
    const { tokens, shape } = cell
    const { calls, stream, dispose } = routerCalls(cell, device, seed, 1)
    const rows = Tensor.zeros([tokens * shape.topK, 16], { dtype: 'f32', device })
    for (const { out } of calls) combine(rows, out).dispose()
    await stream.synchronize()
    rows.dispose()
    dispose()
  }
}

/** Counts one call of each cell's router. */
export async function countBytes(
  cells: readonly Cell[],
  device: 'cpu' | 'cuda',
  onProgress: (line: string) => void,
): Promise<Counted> {
  const none = (reason: string): Counted => ({ bytes: new Map(), reason })
  if (device !== 'cuda') return none('the CPU backend counts no bytes')
  const ncu = places.find((place) =>
    place === 'ncu' ? spawnSync(place, ['--version']).status === 0 : existsSync(place),
  )
  if (ncu === undefined) return none('ncu is not on this machine')
  const script = process.argv[1]
  if (script === undefined) return none('the command cannot be run anew')
  const list = cells.map(({ shape, tokens }) => `${shape.experts}:${shape.topK}:${tokens}`).join(',')
  const args = ['--csv', '--page', 'raw', '--metrics', metric, '--kernel-name', kernels, '--target-processes', 'all']
  onProgress(`counting bytes: ${ncu}`)
  const ran = spawnSync(ncu, [...args, process.execPath, script, 'router', '--once', list], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    timeout: 180_000,
  })
  if (ran.status !== 0)
    return none(`ncu ended with ${ran.status}: ${(ran.stdout + ran.stderr).trim().split('\n').at(-1) ?? ''}`)
  try {
    const sums = sumsOf(ran.stdout)
    if (sums.length !== cells.length) return none(`ncu saw ${sums.length} calls, expected ${cells.length}`)
    return { bytes: new Map(cells.map((cell, i) => [cellName(cell), sums[i] ?? Number.NaN])), reason: null }
  } catch (error) {
    return none(error instanceof Error ? error.message : String(error))
  }
}
