/**
 * `bench tuned`: what `tune` finds to win over the choices that every layer makes without it. Nothing is kept: the tables in force are those that
 * come with the packages, or those of NEXUS_TUNE_FILE.
 */
import { type TuneReport, tune } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { layerOptions } from '../layer-options.js'
import type { Shape } from '../shapes.js'

export interface TunedOptions {
  readonly device: 'cpu' | 'cuda'
  readonly shapes: readonly Shape[]
  readonly tokens: readonly number[]
  /** For each shape. */
  readonly seconds: number
  readonly seed: number
  readonly onProgress: (line: string) => void
}

/** A whole step by the best variants of its linear layers. */
export interface TunedRow {
  readonly shape: string
  readonly tokens: number
  readonly heuristic: readonly string[]
  readonly chosen: readonly string[]
  /** The default's time over the chosen one's. */
  readonly speedup: number
  /** By how much a choice had to be faster, relatively. */
  readonly noise: number
}

export interface TunedResult {
  readonly kind: 'tuned'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly rows: readonly TunedRow[]
  /** Seconds that each shape took. */
  readonly seconds: Readonly<Record<string, number>>
  /** Steps that the time did not reach. */
  readonly skipped: readonly { readonly shape: string; readonly tokens: number }[]
}

/** Of what tune reports on: whole steps, not single linear layers. */
const isStep = (linear: string) => linear.endsWith(' step')

export async function tunedBench(options: TunedOptions): Promise<TunedResult> {
  const { device, shapes, tokens, seed, onProgress } = options
  const rows: TunedRow[] = []
  const seconds: Record<string, number> = {}
  const skipped: { shape: string; tokens: number }[] = []
  for (const shape of shapes) {
    const report = await tune({
      ...layerOptions(shape, device, 'bf16'),
      tokens,
      budgetMs: options.seconds * 1e3,
      seed,
      onProgress: ({ linear, tokens: n, done, total }) => {
        if (isStep(linear)) onProgress(`${shape.name}: ${n} tokens (${done} of ${total})`)
      },
    })
    rows.push(...stepsOf(shape.name, report))
    seconds[shape.name] = report.elapsedMs / 1e3
    for (const { linear, tokens: n } of report.skipped) {
      if (isStep(linear)) skipped.push({ shape: shape.name, tokens: n })
    }
  }
  return {
    kind: 'tuned',
    what: 'whole steps in bf16, by the default’s kernels and by the best that tune found, even and skewed loads alike',
    environment: environment(device),
    seed,
    rows,
    seconds,
    skipped,
  }
}

const stepsOf = (shape: string, { steps }: TuneReport): TunedRow[] =>
  steps.map(({ tokens, heuristic, chosen, speedup, noise }) => ({ shape, tokens, heuristic, chosen, speedup, noise }))
