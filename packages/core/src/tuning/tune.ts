/**
 * `tune`: measures every kernel variant of a layer's linear layers on the device at hand, for the token buckets asked for, and decides which
 * one is to run. Nothing is written and nothing put in force here: `saveTuning` does that.
 */
import { tokenBucket } from '@nexus/graphs'
import { checkInteger, checkNumber, type DeviceName, describe, requireOptions, Stream, systemInfo } from '@nexus/native'
import { type LayerConfig, type LayerOptions, layerOptionKeys, resolveOptions } from '../options.js'
import { type Cell, measureCell } from './cell.js'
import { LinearWeights } from './linear-bench.js'
import { type LinearSpec, linearsOf } from './linears.js'
import { report, type TuneReport } from './report.js'
import { linearKey } from './tune-file.js'

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
  /** Called before each bucket of each linear layer, and at the end. */
  readonly onProgress?: (progress: TuneProgress) => void
  /** Ends it: it rejects with the signal's reason, and everything it allocated is freed. */
  readonly signal?: AbortSignal
}

export interface TuneProgress {
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
  const { device } = config
  signal?.throwIfAborted()
  const linears = distinct(linearsOf(config.experts, config.rule.topK, config.shared?.mlp ?? null))
  const found: { linear: LinearSpec; cells: Cell[] }[] = []
  const skipped: { linear: string; tokens: number }[] = []
  const total = linears.length * tokens.length
  const stream = Stream.create({ device })
  let done = 0
  try {
    for (const [i, linear] of linears.entries()) {
      const cells: Cell[] = []
      found.push({ linear, cells })
      using weights = new LinearWeights(linear, device, stream, cacheBytes, config.seed + i)
      for (const count of tokens) {
        signal?.throwIfAborted()
        onProgress?.({ linear: linear.name, tokens: count, done, total })
        const left = budgetMs - (performance.now() - began)
        const site = { weights, device, stream, signal, skew, seed: config.seed }
        const cell = left <= 0 ? null : await measureCell(count, { fair: left / (total - done), left }, site)
        if (cell === null) skipped.push({ linear: linear.name, tokens: count })
        else cells.push(cell)
        done++
      }
    }
    onProgress?.({ linear: '', tokens: 0, done, total })
  } finally {
    stream.dispose()
  }
  return report(found, { device, skipped, elapsedMs: performance.now() - began })
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
