/**
 * The captures under way, so that ordering between streams knows of them. Recording runs nothing: a wait for work that was queued outside
 * cannot be part of the graph, it belongs before each launch; and whoever is recorded as writing a tensor has written it only after a
 * launch. A capture is synchronous, so there is hardly ever more than one.
 */
import { call } from './call.js'
import { type Stream, streamOf } from './stream.js'

type OnStream = (stream: Stream) => void

/** What a capture has seen: what its launches must wait for and what they write. */
export class Capture {
  readonly #origin: Stream
  readonly #reads = new Map<object, OnStream>()
  readonly #writes = new Map<object, OnStream>()
  readonly #listeners: ((recorded: boolean) => void)[] = []

  constructor(origin: Stream) {
    this.#origin = origin
  }

  /** Whether work queued on `stream` now becomes part of this graph. */
  includes(stream: Stream): boolean {
    if (stream === this.#origin) return true
    return !stream.disposed && call((b) => b.native.streamCapturing(streamOf(stream)))
  }

  /** The graph reads `what`: `orderOnto` makes a stream wait for whatever fills it. */
  reads(what: object, orderOnto: OnStream): void {
    if (!this.#reads.has(what)) this.#reads.set(what, orderOnto)
  }

  /** The graph writes `what`: `writtenOn` says on which stream. Undone at the end, since nothing has run. */
  writes(what: object, writtenOn: OnStream, before: Stream): void {
    if (this.#writes.has(what)) return
    this.#writes.set(what, writtenOn)
    this.onEnd(() => writtenOn(before))
  }

  /** Calls `listener` when the capture ends; `recorded`: whether there is a graph, which keeps the buffers that it uses. */
  onEnd(listener: (recorded: boolean) => void): void {
    this.#listeners.push(listener)
  }

  /** What each launch calls before it and after it. */
  ordering(): { readonly before: readonly OnStream[]; readonly after: readonly OnStream[] } {
    return { before: [...this.#reads.values()], after: [...this.#writes.values()] }
  }

  end(recorded: boolean): void {
    open.delete(this)
    for (const listener of this.#listeners) listener(recorded)
  }
}

const open = new Set<Capture>()

/** Begins to observe; `end` stops. */
export function observeCapture(origin: Stream): Capture {
  const capture = new Capture(origin)
  open.add(capture)
  return capture
}

/** The capture that `stream` takes part in now, or `null`. Free when nothing is being captured. */
export function captureOn(stream: Stream): Capture | null {
  if (open.size === 0) return null
  for (const capture of open) if (capture.includes(stream)) return capture
  return null
}
