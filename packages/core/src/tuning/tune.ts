/**
 * `tune`: measures every kernel variant of a layer's linear layers on the device at hand, for the token buckets asked for, then whole steps with
 * the best of them together, and decides which are to run. Nothing is written and nothing put in force here: `saveTuning` does that.
 */
import { tokenBucket } from '@nexus/graphs'
import { checkInteger, checkNumber, type DeviceName, describe, requireOptions, Stream, systemInfo } from '@nexus/native'
import { type LayerConfig, type LayerOptions, layerOptionKeys, resolveOptions } from '../options.js'
import { panelsThatPay } from '../weight-layout.js'
import { type Budget, type Cell, measureCell, type Site } from './cell.js'
import { type LinearSpec, linearsOf, type MlpName } from './linears.js'
import { type Found, report, type TuneReport } from './report.js'
import { choicesOf, measureStep, type Step } from './step.js'
import type { Choice } from './step-bench.js'
import { linearKey } from './tune-file.js'
import { TuneWeights } from './tune-weights.js'

/** What a layer is, and how its variants are to be measured. */
export interface TuneOptions
  extends Omit<LayerOptions, 'weights' | 'adoptWeights' | 'stream' | 'bias' | 'router' | 'scaleInput' | 'combine'> {
  /** Numbers of tokens; each stands for its token bucket. @default every bucket to 4096 on a GPU; 1, 8, 64, 512 on the CPU */
  readonly tokens?: readonly number[]
  /**
   * Time for all of it, in milliseconds. Buckets that it does not reach are named in the report as skipped.
   * @default 45000
   */
  readonly budgetMs?: number
  /** Standard deviation of the experts' biases in the skewed load. @default 1.5 */
  readonly skew?: number
  /** Bytes of cache that weights must not be served from: launches go over at least twice as many. @default the GPU's L2; 32 MiB on the CPU */
  readonly cacheBytes?: number
  /** Called at each bucket before each linear layer and before the steps, and at the end. */
  readonly onProgress?: (progress: TuneProgress) => void
  /** Ends it: it rejects with the signal's reason, and everything it allocated is freed. */
  readonly signal?: AbortSignal
}

/** What is measured next. */
export interface TuneProgress {
  /** A linear layer's name, or 'experts step', 'shared step': whole steps that decide about those linear layers together; '' at the end. */
  readonly linear: string
  readonly tokens: number
  readonly done: number
  readonly total: number
}

const ownKeys = ['tokens', 'budgetMs', 'skew', 'cacheBytes', 'onProgress', 'signal'] as const
/** What a layer has and its linear layers' speed does not depend on. */
const refusedKeys = ['weights', 'adoptWeights', 'stream', 'bias', 'router', 'scaleInput', 'combine'] as const
const known = [...layerOptionKeys.filter((key) => !refusedKeys.some((refused) => refused === key)), ...ownKeys]

/**
 * Measures the variants of a layer's linear layers. The device should have nothing else to do.
 * @throws TypeError, RangeError naming the option; UnsupportedError, OutOfMemoryError; NexusError when two variants disagree about a
 * result; the signal's reason
 */
export async function tune(options: TuneOptions): Promise<TuneReport> {
  const began = performance.now()
  const { config, tokens, budgetMs, skew, cacheBytes, onProgress, signal } = resolve(options)
  const { device, seed } = config
  signal?.throwIfAborted()
  const linears = distinct(
    linearsOf(config.experts, config.rule.topK, config.shared?.mlp ?? null, panelsThatPay(config)),
  )
  const mlps = [...new Set(linears.map(({ mlp }) => mlp))]
  const found = { cells: [] as Cell[], steps: [] as Step[], skipped: [] as { linear: string; tokens: number }[] }
  const total = (linears.length + mlps.length) * tokens.length
  let done = 0
  /** Keeps what one part finds, or its name where the time does not reach it. */
  const part = async <T>(
    linear: string,
    count: number,
    into: T[],
    measure: (budget: Budget) => Promise<T | null>,
  ): Promise<void> => {
    signal?.throwIfAborted()
    onProgress?.({ linear, tokens: count, done, total })
    const left = budgetMs - (performance.now() - began)
    const result = left <= 0 ? null : await measure({ fair: left / (total - done), left })
    if (result === null) found.skipped.push({ linear, tokens: count })
    else into.push(result)
    done++
  }
  const stream = Stream.create({ device })
  try {
    using weights = new TuneWeights(config, stream, cacheBytes)
    const site: Site = { weights, device, stream, signal, skew, seed }
    for (const count of tokens) {
      for (const linear of linears) {
        await part(linear.name, count, found.cells, (budget) => measureCell(linear, count, budget, site))
      }
      for (const mlp of mlps) {
        const cells = cellsOf(found, linears, mlp, count)
        const others = mlps.filter((other) => other !== mlp).flatMap((other) => chosenFor(found, other, count))
        await part(`${mlp} step`, count, found.steps, async (budget) =>
          cells === null ? null : measureStep(config, cells, others, budget, site),
        )
      }
    }
    onProgress?.({ linear: '', tokens: 0, done, total })
  } finally {
    stream.dispose()
  }
  return report(linears, found, { device, elapsedMs: performance.now() - began })
}

/** The cells of an MLP at one bucket; `null` where the time did not reach one of them. */
function cellsOf(
  { cells }: Pick<Found, 'cells'>,
  linears: readonly LinearSpec[],
  mlp: MlpName,
  tokens: number,
): readonly [Cell, ...Cell[]] | null {
  const there = cells.filter(({ linear, tokens: count }) => linear.mlp === mlp && count === tokens)
  const [first, ...rest] = there
  const all = linears.filter((linear) => linear.mlp === mlp).length
  return first === undefined || there.length < all ? null : [first, ...rest]
}

/** What an MLP has in a step so far: what was chosen for it, else, by not being named, the heuristic's variants. */
function chosenFor({ steps }: Found, mlp: MlpName, tokens: number): readonly Choice[] {
  const step = steps.find((other) => other.mlp === mlp && other.tokens === tokens)
  return step === undefined ? [] : choicesOf(step.cells, step.chosen)
}

/** Those of one shape are measured once: a table does not tell them apart. */
function distinct(linears: readonly LinearSpec[]): readonly LinearSpec[] {
  return linears.filter((linear, i) => linears.findIndex((other) => linearKey(other) === linearKey(linear)) === i)
}

/** The token buckets to be measured, ascending. */
function bucketsOf(tokens: readonly number[] | undefined, { device, rule }: LayerConfig): readonly number[] {
  const given = tokens ?? (device === 'cpu' ? cpuTokens : gpuTokens)
  if (!Array.isArray(given) || given.length === 0) {
    throw new TypeError(`tokens: expected a list of numbers of tokens, at least one, got ${describe(tokens)}`)
  }
  const most = Math.floor((2 ** 31 - 1) / rule.topK)
  const buckets = given.map((count, i) => tokenBucket(checkInteger(`tokens[${i}]`, count, 1, most)))
  return [...new Set(buckets)].sort((a, b) => a - b)
}

/** Every bucket to 4096. */
const gpuTokens = Array.from({ length: 4096 }, (_, i) => i + 1).filter((tokens) => tokenBucket(tokens) === tokens)
const cpuTokens = [1, 8, 64, 512]

/** What is known of a CPU's caches is too little: as much as the last level of most of them. */
const cpuCacheBytes = 32 * 2 ** 20

function cacheOf(device: DeviceName): number {
  const gpu = systemInfo().machine?.cuda.devices.find((info) => info.device === device)
  return gpu?.l2Bytes ?? cpuCacheBytes
}

function resolve(options: TuneOptions) {
  requireOptions('tune options', options, known)
  const { tokens, budgetMs = 45_000, skew = 1.5, cacheBytes, onProgress, signal, ...shape } = options
  const config = resolveOptions(shape)
  checkNumber('budgetMs', budgetMs, 1)
  checkNumber('skew', skew, 0, 100)
  if (cacheBytes !== undefined) checkInteger('cacheBytes', cacheBytes, 0)
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new TypeError(`onProgress: expected a function, got ${describe(onProgress)}`)
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`signal: expected an AbortSignal, got ${describe(signal)}`)
  }
  return {
    config,
    tokens: bucketsOf(tokens, config),
    budgetMs,
    skew,
    cacheBytes: cacheBytes ?? cacheOf(config.device),
    onProgress,
    signal,
  }
}
