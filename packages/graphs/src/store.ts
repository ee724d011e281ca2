/**
 * Graphs by key, under a budget of bytes and a number. What was used longest ago goes first; a graph that is being replayed never goes, it is
 * disposed of when the replay has returned. Time is a counter of uses, so that a hit costs one store and no list; the search for the oldest is
 * paid by a capture, which costs a thousand times as much.
 */
import type { CachedGraph, FallbackReason } from './model.js'

/** What is known of a key. */
export interface Entry<G> {
  readonly key: string
  graph: G | null
  /** Of the graph, or of the last one there was; -1 while there was none. */
  bytes: number
  /** Replays that are on the stack. */
  inUse: number
  /** The graph goes when the replays have returned. */
  doomed: boolean
  /** A capture is on the stack. */
  capturing: boolean
  lastUsed: number
  /** Eager steps since there was last a graph. */
  uses: number
  /** An eager step has been done: what it sets up is there. */
  warm: boolean
  /** Failed captures in a row; the step (by `uses`) before which none is tried again; why. */
  failures: number
  retryAt: number
  failure: FallbackReason | null
  message: string
}

/** Keys without a graph that are remembered (their uses and failures). */
const MAX_KEYS = 4096

export class GraphStore<G extends CachedGraph> {
  readonly #entries = new Map<string, Entry<G>>()
  readonly #budget: number
  readonly #maxGraphs: number
  #clock = 0
  bytes = 0
  graphs = 0
  evictions = 0

  constructor(budget: number, maxGraphs: number) {
    this.#budget = budget
    this.#maxGraphs = maxGraphs
  }

  find(key: string): Entry<G> | undefined {
    return this.#entries.get(key)
  }

  touch(entry: Entry<G>): void {
    entry.lastUsed = ++this.#clock
  }

  /** The entry of a new key. */
  add(key: string): Entry<G> {
    if (this.#entries.size - this.graphs >= MAX_KEYS) this.#forget()
    const entry: Entry<G> = {
      key,
      graph: null,
      bytes: -1,
      inUse: 0,
      doomed: false,
      capturing: false,
      lastUsed: ++this.#clock,
      uses: 0,
      warm: false,
      failures: 0,
      retryAt: 0,
      failure: null,
      message: '',
    }
    this.#entries.set(key, entry)
    return entry
  }

  /** Bytes that a graph of this key is likely to take. */
  estimate(entry: Entry<G>): number | null {
    if (entry.bytes >= 0) return entry.bytes
    return this.graphs === 0 ? null : this.bytes / this.graphs
  }

  /**
   * Takes a graph in, and makes room for it.
   * @returns false, with nothing changed, when there is no room that could be made
   */
  put(entry: Entry<G>, graph: G, bytes: number): boolean {
    const going = this.#toGo(bytes)
    if (going === null) return false
    entry.graph = graph
    entry.bytes = bytes
    entry.uses = 0
    this.bytes += bytes
    this.graphs++
    this.touch(entry)
    this.#dropAll(going)
    return true
  }

  /** Which graphs have to go for so many bytes more; `null` when even all that may go are not enough. */
  #toGo(bytes: number): Entry<G>[] | null {
    let over = this.bytes + bytes - this.#budget
    let tooMany = this.graphs + 1 - this.#maxGraphs
    if (over <= 0 && tooMany <= 0) return []
    const candidates = [...this.#entries.values()].filter(({ graph, inUse }) => graph !== null && inUse === 0)
    const going: Entry<G>[] = []
    for (const entry of candidates.sort((a, b) => a.lastUsed - b.lastUsed)) {
      if (over <= 0 && tooMany <= 0) break
      over -= entry.bytes
      tooMany--
      going.push(entry)
    }
    return over <= 0 && tooMany <= 0 ? going : null
  }

  /** Disposes of an entry's graph: now, or when its replays have returned. */
  drop(entry: Entry<G>): boolean {
    const { graph } = entry
    if (graph === null) return false
    if (entry.inUse > 0) {
      entry.doomed = true
      return true
    }
    entry.graph = null
    entry.doomed = false
    entry.uses = 0
    this.bytes -= entry.bytes
    this.graphs--
    this.evictions++
    graph.dispose()
    return true
  }

  /** Drops all graphs and forgets all keys whose graph is not in use. */
  clear(): void {
    const all = [...this.#entries.values()]
    try {
      this.#dropAll(all)
    } finally {
      for (const { key, graph, capturing } of all) if (graph === null && !capturing) this.#entries.delete(key)
    }
  }

  /** One whose `dispose` throws does not keep the others; the first error is thrown at the end. */
  #dropAll(entries: readonly Entry<G>[]): void {
    const errors: unknown[] = []
    for (const entry of entries) {
      try {
        this.drop(entry)
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0) throw errors[0]
  }

  /** The key without a graph that came first makes room. */
  #forget(): void {
    for (const entry of this.#entries.values()) {
      if (entry.graph !== null || entry.capturing) continue
      this.#entries.delete(entry.key)
      return
    }
  }
}
