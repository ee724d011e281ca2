/**
 * `bench start-up`: how long a new process takes to its first result, and what of it comes after the weights are there. Each run is a process of
 * its own, since code is loaded and workspaces are made once in a process.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { median } from '../median.js'
import { type Shape, shapeArgument } from '../shapes.js'
import type { StartUpTimes } from './once.js'

export interface StartUpOptions {
  readonly device: 'cpu' | 'cuda'
  readonly cells: readonly { readonly shape: Shape; readonly tokens: number }[]
  /** Processes for each cell. */
  readonly runs: number
  readonly seed: number
  /** The command's own program. */
  readonly program: string
  readonly onProgress: (line: string) => void
}

export interface StartUpRow {
  readonly shape: string
  readonly tokens: number
  readonly runs: readonly StartUpTimes[]
  /** Medians over the runs. */
  readonly layerMs: number
  readonly firstMs: number
  readonly secondMs: number
  readonly laterMs: number
  /** The slowest run's. */
  readonly firstMaxMs: number
}

export interface StartUpResult {
  readonly kind: 'start-up'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly rows: readonly StartUpRow[]
  readonly failed: readonly { readonly cell: string; readonly why: string }[]
}

const run = promisify(execFile)

export async function startUpBench(options: StartUpOptions): Promise<StartUpResult> {
  const { device, cells, seed, onProgress } = options
  const rows: StartUpRow[] = []
  const failed: { cell: string; why: string }[] = []
  for (const { shape, tokens } of cells) {
    const cell = `${shape.name} ${tokens}`
    try {
      const runs: StartUpTimes[] = []
      for (let i = 0; i < options.runs; i++) runs.push(await once(shape, tokens, options))
      const of = (name: keyof StartUpTimes) => median(runs.map((times) => times[name]))
      const row: StartUpRow = {
        shape: shape.name,
        tokens,
        runs,
        layerMs: of('layerMs'),
        firstMs: of('firstMs'),
        secondMs: of('secondMs'),
        laterMs: of('laterMs'),
        firstMaxMs: Math.max(...runs.map(({ firstMs }) => firstMs)),
      }
      rows.push(row)
      onProgress(`${cell} tokens: the first forward ${row.firstMs.toFixed(1)} ms, later ones ${row.laterMs.toFixed(2)}`)
    } catch (error) {
      const why = errorText(error)
      failed.push({ cell, why })
      onProgress(`${cell} tokens: ${why}`)
    }
  }
  return {
    kind: 'start-up',
    what: 'a new process for each run: bf16, weights made on the device, no graphs; milliseconds on the host’s clock',
    environment: environment(device),
    seed,
    rows,
    failed,
  }
}

async function once(shape: Shape, tokens: number, { device, program, seed }: StartUpOptions): Promise<StartUpTimes> {
  const words = [
    program,
    'start-up',
    '--once',
    `${shapeArgument(shape)}/${tokens}`,
    '--device',
    device,
    '--seed',
    String(seed),
  ]
  const { stdout } = await run(process.execPath, words)
  return JSON.parse(stdout) as StartUpTimes
}
