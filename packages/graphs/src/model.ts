/** The plain data of a graph cache, and what it holds. */
import type { CapturePolicy } from './policy.js'

/** A recorded step, as far as the cache is concerned: `Graph` of @nexus/native is one. */
export interface CachedGraph {
  /** Device memory that it holds. Read once, when it is captured. */
  readonly bytes: number
  /** `bytes` is the most that is believed of it: what was measured was not its own alone. @default false */
  readonly bytesEstimated?: boolean
  /** Milliseconds of capture, instantiation and upload. */
  readonly captureMs: number
  /** Called exactly once, when it is evicted. Runs that are queued still finish. */
  dispose(): void
}

/** One step, in its two forms. */
export interface GraphStep<G extends CachedGraph, T> {
  /** Runs it one operation at a time. */
  eager(): T
  /** Records it, without running it. */
  capture(): G
  /** Runs it by a graph that `capture` made under the same key. */
  replay(graph: G): T
  /** True tokens, for the padding waste. Give `bucket` with it. */
  readonly tokens?: number
  /** Tokens that the graph is laid out for. */
  readonly bucket?: number
}

/** What came of a step. */
export interface GraphRun<T> {
  readonly mode: 'graph' | 'eager'
  /** Why, for people. */
  readonly reason: string
  /** What `replay` or `eager` returned. */
  readonly value: T
}

/** Why a step that should have had a graph ran without one. */
export type FallbackReason = 'capture-failed' | 'out-of-memory' | 'unsupported' | 'over-budget'

export interface GraphCacheOptions {
  /**
   * Bytes that all graphs together may hold, 0 or more.
   * @default 256 MiB
   */
  readonly memoryBudgetBytes?: number
  /** @default capturePolicies.after(3) */
  readonly policy?: CapturePolicy
  /**
   * Graphs at most, 1 or more. CUDA's own cost of an executable graph is not only memory.
   * @default 256
   */
  readonly maxGraphs?: number
}

export interface GraphCacheStats {
  /** Graphs that are held, and their bytes: never more than the budget. */
  readonly graphs: number
  readonly bytes: number
  readonly memoryBudgetBytes: number
  /** Steps by a graph that was there. hits + misses = steps. */
  readonly hits: number
  /** Steps without one: eager, or recorded on the spot. */
  readonly misses: number
  readonly captures: number
  /** Captures whose bytes are an estimate: others allocated on the device while they were measured. */
  readonly estimated: number
  /** Sum over all captures. */
  readonly captureMs: number
  /** Graphs that had to go, for the budget or because `evict` or `clear` said so. */
  readonly evictions: number
  /** Eager steps that should have had a graph, by reason; those that wait for the next attempt are counted as well. */
  readonly fallbacks: Readonly<Record<FallbackReason, number>>
  /** The last such reason in words. */
  readonly lastFallback: string | null
  /** True tokens of the steps by graphs that said so. */
  readonly tokens: number
  /** Tokens that those graphs were laid out for. */
  readonly paddedTokens: number
  /** 1 - tokens / paddedTokens: the part of the launches that was padding; `null` while there were none. */
  readonly paddingWaste: number | null
}
