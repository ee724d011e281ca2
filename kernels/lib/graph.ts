/** Work recorded once and launched many times. */
import type { GraphHandle } from './binding.js'
import { call } from './call.js'
import { type Capture, captureOn, observeCapture } from './capture.js'
import type { DeviceName } from './device.js'
import { DisposedError, GraphCaptureError } from './errors.js'
import { describe } from './options.js'
import { type Stream, streamOf } from './stream.js'

/** A promise would mean that part of the work is queued when the capture is over. */
function refusePromise(result: unknown): void {
  if (typeof result !== 'object' || result === null || typeof Reflect.get(result, 'then') !== 'function') return
  Promise.resolve(result).catch(() => undefined) // what it rejects with is not the error that matters here
  throw new GraphCaptureError('body: expected a function that returns nothing, got one that returns a promise')
}

function captureError(error: unknown): GraphCaptureError {
  if (error instanceof GraphCaptureError) return error
  const message = error instanceof Error ? error.message : String(error)
  return new GraphCaptureError(`body: threw while it was recorded: ${message}`, { cause: error })
}

/**
 * Stream work as one launch: a CUDA graph, on the CPU a recorded list of commands. Launches of one graph never overlap. The graph keeps the
 * memory that it uses, also of tensors and layers that are disposed of.
 *
 * @example
 * using graph = Graph.capture(stream, () => {
 *   experts.forward(x, routed, { stream, out: rows })
 *   combine(rows, routed, { stream, out: y })
 * })
 * await x.write(tokens)
 * graph.launch()
 * const result = await y.toFloat32Array()
 */
export class Graph {
  readonly device: DeviceName
  /** Operations recorded. */
  readonly nodes: number
  /**
   * Device memory of the executable graph (CPU: host memory); not that of the tensors and layers it uses. On CUDA it is what the device's free memory
   * lost while the graph was made.
   */
  readonly bytes: number
  /** More was lost than one graph can explain, since others allocated meanwhile: `bytes` is the most that is believed of this one. */
  readonly bytesEstimated: boolean
  /** Milliseconds that recording, instantiating and uploading took. */
  readonly captureMs: number
  readonly #stream: Stream
  readonly #ordering: ReturnType<Capture['ordering']>
  #handle: GraphHandle | null

  private constructor(stream: Stream, handle: GraphHandle, capture: Capture) {
    const info = call((b) => b.native.graphInfo(handle))
    this.device = stream.device
    this.nodes = info.nodes
    this.bytes = info.bytes
    this.bytesEstimated = info.bytesEstimated
    this.captureMs = info.captureMs
    this.#stream = stream
    this.#ordering = capture.ordering()
    this.#handle = handle
  }

  /**
   * Records what `body` queues on `stream`, and on streams that are forked from it by events and joined again. Nothing of it runs. `body`
   * must not allocate (make tensors before and pass them as `out`), read back or wait, and must return at once.
   * @throws GraphCaptureError when `body` throws (its error is the `cause`), does what cannot be recorded, or returns a promise; the
   * capture is undone then
   */
  static capture(stream: Stream, body: () => void): Graph {
    const origin = streamOf(stream)
    if (typeof body !== 'function') throw new TypeError(`body: expected a function, got ${describe(body)}`)
    call((b) => b.native.graphBegin(origin))
    const capture = observeCapture(stream)
    let handle: GraphHandle | null = null
    try {
      refusePromise(body())
    } catch (error) {
      try {
        call((b) => b.native.graphAbort(origin))
      } finally {
        capture.end(false)
      }
      throw captureError(error)
    }
    try {
      handle = call((b) => b.native.graphEnd(origin))
      return new Graph(stream, handle, capture)
    } finally {
      capture.end(handle !== null)
    }
  }

  /**
   * Queues one run, behind whatever has since written the tensors that it reads.
   * @param stream on the graph's device; @default the stream it was recorded on
   * @throws DisposedError; RangeError when the stream is on another device; GraphCaptureError inside another capture
   */
  launch(stream: Stream = this.#stream): void {
    const handle = Graph.handle(this)
    const on = streamOf(stream)
    if (stream.device !== this.device) {
      throw new RangeError(`stream: expected a stream on ${this.device}, got one on ${stream.device}`)
    }
    if (captureOn(stream) !== null) {
      throw new GraphCaptureError('stream: is being recorded, and a graph cannot be launched into another one')
    }
    for (const orderOnto of this.#ordering.before) orderOnto(stream)
    call((b) => b.native.graphLaunch(handle, on))
    for (const writtenOn of this.#ordering.after) writtenOn(stream)
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#handle === null
  }

  /** Frees the graph behind its queued launches. Twice is fine. */
  dispose(): void {
    const handle = this.#handle
    this.#handle = null
    if (handle !== null) call((b) => b.native.release(handle))
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal */
  static handle(graph: Graph): GraphHandle {
    if (!(graph instanceof Graph)) throw new TypeError(`graph: expected a Graph, got ${describe(graph)}`)
    if (graph.#handle === null) throw new DisposedError('graph: was disposed')
    return graph.#handle
  }
}
