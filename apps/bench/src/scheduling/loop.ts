/**
 * Closed loops of device steps: each keeps a few steps queued ahead of the device and times every step by the events
 * behind it. What is timed is the interval between two completions of a loop: what a step costs its tenant, waiting included.
 */
import { Event, type Stream } from '@nexus/core'

export class Loop {
  /** Microseconds between completions, one per step after the first. */
  readonly intervalsUs: number[] = []
  completed = 0
  readonly #free: Event[] = []
  readonly #queued: Event[] = []
  #previous: Event | null = null

  /**
   * @param stream - where `enqueue` queues the step that is timed
   * @param depth - steps queued ahead
   */
  constructor(
    readonly name: string,
    readonly stream: Stream,
    readonly enqueue: () => void,
    readonly depth: number,
  ) {}

  /** Takes in what has finished, and queues more unless `drain`. */
  pump(drain = false): void {
    while (this.#queued[0]?.ready) {
      const done = this.#queued.shift()
      if (!done) break
      if (this.#previous !== null) {
        this.intervalsUs.push(this.#previous.elapsedMs(done) * 1e3)
        this.#free.push(this.#previous)
      }
      this.#previous = done
      this.completed++
    }
    while (!drain && this.#queued.length < this.depth) {
      this.enqueue()
      const mark = this.#free.pop() ?? Event.create(this.stream.device)
      mark.record(this.stream)
      this.#queued.push(mark)
    }
  }

  get idle(): boolean {
    return this.#queued.length === 0
  }

  /** Forgets what was measured: the steps so far were the warm-up. */
  restart(): void {
    this.intervalsUs.length = 0
    this.completed = 0
  }

  dispose(): void {
    for (const mark of [...this.#free, ...this.#queued, ...(this.#previous ? [this.#previous] : [])]) mark.dispose()
  }
}

const breathe = () => new Promise<void>((resolve) => setImmediate(resolve))

/** Runs loops side by side until `enough` says so, then lets them drain. */
export async function drive(loops: readonly Loop[], enough: () => boolean, signal?: AbortSignal): Promise<void> {
  for (let turn = 0; !enough(); turn++) {
    signal?.throwIfAborted()
    for (const loop of loops) loop.pump()
    if (turn % 64 === 63) await breathe()
  }
  while (!loops.every((loop) => loop.idle)) {
    for (const loop of loops) loop.pump(true)
    await breathe()
  }
}
