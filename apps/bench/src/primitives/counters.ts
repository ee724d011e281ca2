/**
 * Bytes that a call moves, counted by the hardware: NVIDIA's profiler runs this command anew with one call of each router, and its sums come
 * back. A figure that cannot be had is missing, with the reason.
 */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { combine, Tensor } from '@nexus/core'
import { errorText } from '../error-text.js'
import { type Cell, cellName } from '../layer/cells.js'
import { routerCalls } from './router-calls.js'

export interface Counted {
  /** By cell name. */
  readonly bytes: ReadonlyMap<string, number>
  readonly reason: string | null
}

/**
 * Reads and writes of the SMs at the L2 cache, in sectors. `lts__t_bytes` counts what the two halves of that cache send one another as well,
 * and gives 1.5 times what crosses between it and the SMs.
 */
const metric = 'lts__t_sectors_srcunit_tex.sum'
const sectorBytes = 32

/** The kernel that stands behind each call as a mark (see {@link routeOnce}), and those that route. */
export const mark = 'weighted_sum'
const kernels = `regex:route|${mark}`

/** Launches of a call at most, with its mark: ncu looks at no more of them. */
const launches = 4

/**
 * One metric is one pass, for which ncu has to put nothing back. It is told to leave the clocks and the caches as they are, which takes it longer
 * than the kernels: bytes depend on neither.
 */
const profile = [
  ...['--csv', '--page', 'raw', '--metrics', metric, '--kernel-name', kernels],
  ...['--clock-control', 'none', '--cache-control', 'none', '--target-processes', 'application-only'],
]

const places = ['ncu', '/usr/local/cuda/bin/ncu']

/**
 * Bytes of the kernels before each mark, summed up.
 * @param csv what `ncu --csv --page raw` printed: notes, a line of names, one of units, one for each kernel
 * @throws Error when no kernel is in it
 */
export function sumsOf(csv: string): number[] {
  const lines = csv.split('\n').filter((line) => line.startsWith('"'))
  const fields = (line: string) => [...line.matchAll(/"((?:[^"]|"")*)"/g)].map(([, text = '']) => text)
  const [names = [], units = [], ...rows] = lines.map(fields)
  const [value, name] = [names.indexOf(metric), names.indexOf('Kernel Name')]
  if (value < 0 || name < 0 || rows.length === 0) throw new Error('ncu counted no kernel')
  if (units[value] !== 'sector') throw new Error(`ncu gives ${metric} in ${units[value]}, expected sector`)
  const sums: number[] = []
  let sum = 0
  for (const row of rows) {
    if (row[name]?.includes(mark)) {
      sums.push(sum)
      sum = 0
    } else sum += Number((row[value] ?? '').replaceAll(',', '')) * sectorBytes
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
  onProgress(`counting bytes: ${ncu}`)
  const ran = spawnSync(
    ncu,
    [...profile, '--launch-count', `${launches * cells.length}`, process.execPath, script, 'router', '--once', list],
    { encoding: 'utf8', maxBuffer: 2 ** 28, timeout: 180_000 },
  )
  if (ran.status !== 0)
    return none(`ncu ended with ${ran.status}: ${(ran.stdout + ran.stderr).trim().split('\n').at(-1) ?? ''}`)
  try {
    const sums = sumsOf(ran.stdout)
    if (sums.length !== cells.length) return none(`ncu saw ${sums.length} calls, expected ${cells.length}`)
    return { bytes: new Map(cells.map((cell, i) => [cellName(cell), sums[i] ?? Number.NaN])), reason: null }
  } catch (error) {
    return none(errorText(error))
  }
}
