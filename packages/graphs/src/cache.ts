/**
 * Warm-up → capture → replay, for any kind of recorded step. The first step of a key is eager, and so are the next ones until the policy wants a
 * graph; then the step is recorded and from there on replayed. What cannot be recorded runs eagerly, with the reason, and is tried again
 * after ever longer pauses. Nothing in here knows CUDA: what is captured and how it is replayed are the caller's two functions.
 */
import {
  checkInteger,
  checkNumber,
  checkOptions,
  DisposedError,
  describe,
  GraphCaptureError,
  OutOfMemoryError,
  UnsupportedError,
} from '@nexus/native'
import type { CachedGraph, FallbackReason, GraphCacheOptions, GraphCacheStats, GraphRun, GraphStep } from './model.js'
import { ask, type CapturePolicy, capturePolicies, checkPolicy } from './policy.js'
import { type Entry, GraphStore } from './store.js'

/** Steps of a key until the next attempt after the first failure; it doubles with each further one, up to the second figure. */
const FIRST_PAUSE = 16
const LONGEST_PAUSE = 65536

const REPLAYED = 'by its graph'
const CAPTURED = 'recorded now'
const WARM_UP = 'warm-up: the first step of a kind sets up what a capture must not'
const NESTED = 'a capture of the same step is on the way'

/**
 * @example
 * ```ts
 * using cache = new GraphCache<Graph>({ memoryBudgetBytes: 64 * 2 ** 20 })
 * const { mode, reason } = cache.run(key, {
 *   eager: () => step(),
 *   capture: () => Graph.capture(stream, step),
 *   replay: (graph) => graph.launch(stream),
 * })
 * ```
 */
export class GraphCache<G extends CachedGraph> {
  readonly #budget: number
  readonly #policy: CapturePolicy
  readonly #notYet: string
  readonly #store: GraphStore<G>
  readonly #fallbacks: Record<FallbackReason, number> = {
    'capture-failed': 0,
    'out-of-memory': 0,
    unsupported: 0,
    'over-budget': 0,
  }
  #hits = 0
  #misses = 0
  #captures = 0
  #estimated = 0
  #captureMs = 0
  #tokens = 0
  #paddedTokens = 0
  #lastFallback: string | null = null
  #disposed = false

  /** @throws TypeError, RangeError naming the option */
  constructor(options: GraphCacheOptions = {}) {
    checkOptions('options', options, ['memoryBudgetBytes', 'policy', 'maxGraphs'])
    this.#budget = checkNumber('options.memoryBudgetBytes', options.memoryBudgetBytes ?? 256 * 2 ** 20, 0)
    this.#policy = checkPolicy(options.policy ?? capturePolicies.after())
    this.#notYet = `eager: policy '${this.#policy.name}'`
    this.#store = new GraphStore(this.#budget, checkInteger('options.maxGraphs', options.maxGraphs ?? 256, 1))
  }

  /**
   * One step: by its graph, or eagerly with the reason.
   * @param key what the graph is for: see `graphKey`
   * @throws CapturePolicyError before anything was done; TypeError, RangeError for a wrong step; DisposedError; and what `eager` and `replay`
   * throw. Of `capture`, GraphCaptureError, OutOfMemoryError and UnsupportedError make the step eager; other errors are thrown.
   */
  run<T>(key: string, step: GraphStep<G, T>): GraphRun<T> {
    if (this.#disposed) throw new DisposedError('graph cache: was disposed')
    const entry = this.#store.find(key)
    if (entry !== undefined && entry.graph !== null) {
      if (step.tokens !== undefined) checkTokens(step.tokens, step.bucket)
      this.#hits++
      return this.#replay(entry, entry.graph, step, REPLAYED)
    }
    return this.#miss(key, entry, step)
  }

  /** True when a graph of this key is there. */
  has(key: string): boolean {
    return (this.#store.find(key)?.graph ?? null) !== null
  }

  stats(): GraphCacheStats {
    return {
      graphs: this.#store.graphs,
      bytes: this.#store.bytes,
      memoryBudgetBytes: this.#budget,
      hits: this.#hits,
      misses: this.#misses,
      captures: this.#captures,
      estimated: this.#estimated,
      captureMs: this.#captureMs,
      evictions: this.#store.evictions,
      fallbacks: { ...this.#fallbacks },
      lastFallback: this.#lastFallback,
      tokens: this.#tokens,
      paddedTokens: this.#paddedTokens,
      paddingWaste: this.#paddedTokens === 0 ? null : 1 - this.#tokens / this.#paddedTokens,
    }
  }

  /** Disposes of a key's graph; one that is being replayed goes when the replay has returned. False when there was none. */
  evict(key: string): boolean {
    const entry = this.#store.find(key)
    return entry !== undefined && this.#store.drop(entry)
  }

  /** Disposes of all graphs and forgets uses and failures. The statistics stay. */
  clear(): void {
    this.#store.clear()
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#disposed
  }

  /** Disposes of all graphs. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    this.#store.clear()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #replay<T>(entry: Entry<G>, graph: G, step: GraphStep<G, T>, reason: string): GraphRun<T> {
    const { tokens, bucket = 0 } = step
    if (tokens !== undefined) {
      this.#tokens += tokens
      this.#paddedTokens += bucket
    }
    this.#store.touch(entry)
    entry.inUse++
    try {
      return { mode: 'graph', reason, value: step.replay(graph) }
    } finally {
      if (--entry.inUse === 0 && entry.doomed) this.#store.drop(entry)
    }
  }

  #miss<T>(key: string, found: Entry<G> | undefined, step: GraphStep<G, T>): GraphRun<T> {
    checkStep(key, step)
    if (step.tokens !== undefined) checkTokens(step.tokens, step.bucket)
    const entry = found ?? this.#store.add(key)
    const reason = this.#why(entry)
    // From here on it is a step; what the policy did wrong was none.
    this.#misses++
    if (reason !== null) return this.#eager(entry, step, reason)
    // A policy that cleared the cache meanwhile: this entry is no longer in it, a graph of it would be lost.
    if (this.#store.find(key) !== entry) return this.#eager(entry, step, this.#notYet)
    const graph = this.#capture(entry, step)
    if (graph !== null) return this.#replay(entry, graph, step, CAPTURED)
    return this.#eager(entry, step, entry.message)
  }

  /** Why this step is not recorded; `null` when it is. */
  #why(entry: Entry<G>): string | null {
    if (!entry.warm) return WARM_UP
    if (entry.capturing) return NESTED
    if (entry.failure !== null && entry.uses < entry.retryAt) return entry.message
    const { key, uses } = entry
    const bytesInUse = this.#store.bytes
    const estimateBytes = this.#store.estimate(entry)
    const wanted = ask(this.#policy, { key, uses, bytesInUse, budgetBytes: this.#budget, estimateBytes })
    return wanted ? null : this.#notYet
  }

  #eager<T>(entry: Entry<G>, step: GraphStep<G, T>, reason: string): GraphRun<T> {
    this.#store.touch(entry)
    if (entry.failure !== null && reason === entry.message) {
      this.#fallbacks[entry.failure]++
      this.#lastFallback = reason
    }
    const value = step.eager()
    entry.uses++
    entry.warm = true
    return { mode: 'eager', reason, value }
  }

  #capture<T>(entry: Entry<G>, step: GraphStep<G, T>): G | null {
    let graph: G
    entry.capturing = true
    try {
      graph = checkGraph(step.capture())
    } catch (error) {
      const failure = failureOf(error)
      if (failure === null) throw error
      this.#failed(entry, failure, `capture failed: ${(error as Error).message}`)
      return null
    } finally {
      entry.capturing = false
    }
    this.#captures++
    if (graph.bytesEstimated === true) this.#estimated++
    this.#captureMs += graph.captureMs
    const { bytes } = graph
    if (this.#disposed) {
      graph.dispose()
      throw new DisposedError('graph cache: was disposed during a capture')
    }
    if (!this.#store.put(entry, graph, bytes)) {
      entry.bytes = bytes
      graph.dispose()
      const others = bytes > this.#budget ? '' : ', and what is there is in use'
      const estimated = graph.bytesEstimated === true
      const size = `${bytes} bytes${estimated ? ' (an estimate: others allocated meanwhile)' : ''}`
      this.#failed(entry, 'over-budget', `a graph of ${size} does not fit: ${this.#budget} are allowed${others}`)
      // Measured again, an estimate may turn out smaller.
      if (bytes > this.#budget && !estimated) entry.retryAt = Number.POSITIVE_INFINITY
      return null
    }
    entry.failures = 0
    entry.failure = null
    entry.message = ''
    return graph
  }

  #failed(entry: Entry<G>, failure: FallbackReason, message: string): void {
    entry.retryAt = entry.uses + Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** entry.failures)
    entry.failures++
    entry.failure = failure
    entry.message = message
  }
}

/** Failures that a step survives; `null` for those that it does not. */
function failureOf(error: unknown): FallbackReason | null {
  if (error instanceof OutOfMemoryError) return 'out-of-memory'
  if (error instanceof UnsupportedError) return 'unsupported'
  return error instanceof GraphCaptureError ? 'capture-failed' : null
}

function checkStep(key: unknown, step: unknown): void {
  if (typeof key !== 'string' || key === '') throw new TypeError(`key: expected a string, got ${describe(key)}`)
  if (typeof step !== 'object' || step === null) throw new TypeError(`step: expected an object, got ${describe(step)}`)
  for (const name of ['eager', 'capture', 'replay'] as const) {
    const value: unknown = Reflect.get(step, name)
    if (typeof value !== 'function') throw new TypeError(`step.${name}: expected a function, got ${describe(value)}`)
  }
}

function checkTokens(tokens: number, bucket: number | undefined): void {
  if (typeof bucket === 'number' && tokens >= 0 && tokens <= bucket) return
  throw new RangeError(`step.tokens: expected 0 to step.bucket (${describe(bucket)}), got ${describe(tokens)}`)
}

function checkGraph<G extends CachedGraph>(graph: G): G {
  const { bytes, captureMs, dispose } = (graph ?? {}) as Partial<Record<keyof CachedGraph, unknown>>
  if (typeof dispose !== 'function') {
    throw new TypeError(`step.capture: expected a graph (bytes, captureMs, dispose), got ${describe(graph)}`)
  }
  try {
    checkNumber('the bytes of what step.capture returned', bytes, 0)
    checkNumber('the captureMs of what step.capture returned', captureMs, 0)
  } catch (error) {
    graph.dispose()
    throw error
  }
  return graph
}
