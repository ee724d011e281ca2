/** Recorded traces as files: what was recorded, in words and in the options that record it again, and the counts, a line for each step. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { recordedTrace, type Trace } from '@nexus/slices/simulator'
import { type Drift, drifts } from './drift.js'

export const traceFormat = 'nexus-routing-trace/1'

export interface TraceFile {
  readonly format: typeof traceFormat
  readonly name: string
  /** What the layer, the data and the drift are: for people. */
  readonly layer: string
  readonly data: string
  readonly drift: string
  /** What records it again. */
  readonly options: {
    readonly source: string
    readonly experts: number
    readonly topK: number
    readonly drift: Drift
    readonly tokens: number
    readonly seed: number
  }
  /** Where it was recorded. */
  readonly device: string
  /** Assignments by step, then by expert; each step's sum is tokens · topK. */
  readonly counts: readonly (readonly number[])[]
}

/** The file's text: one line for each step, so that it can be read and compared. */
export function traceText(file: TraceFile): string {
  const { counts, ...head } = file
  const text = JSON.stringify(head, null, 1)
  return `${text.slice(0, -2)},\n "counts": [\n${counts.map((step) => JSON.stringify(step)).join(',\n')}\n]}\n`
}

/** @throws RangeError that says what is wrong with which file */
export function readTrace(path: string): TraceFile {
  const wrong = (what: string) => new RangeError(`${path}: ${what}`)
  const file = JSON.parse(readFileSync(path, 'utf8')) as Partial<TraceFile>
  if (file.format !== traceFormat) throw wrong(`expected format '${traceFormat}', got '${file.format}'`)
  const { options, counts, name } = file
  if (typeof name !== 'string' || !options || !drifts.includes(options.drift) || !Array.isArray(counts)) {
    throw wrong('expected a name, options and counts')
  }
  const total = options.tokens * options.topK
  for (const [step, row] of counts.entries()) {
    const sum = row.reduce((all: number, n: number) => all + n, 0)
    if (row.length !== options.experts || sum !== total) {
      throw wrong(
        `step ${step}: expected ${options.experts} counts with a sum of ${total}, got ${row.length} with ${sum}`,
      )
    }
  }
  return file as TraceFile
}

/** For the simulator. */
export const traceOf = ({ name, counts }: TraceFile): Trace => recordedTrace(name, counts)

/** The traces of a folder, by name; none when there is no such folder. */
export function readTraces(folder: string): TraceFile[] {
  let names: string[]
  try {
    names = readdirSync(folder)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
  return names
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => readTrace(join(folder, name)))
}
