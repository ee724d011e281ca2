/**
 * Recorded steps of a layer: the step object that a graph cache runs, eagerly or by a graph. One object serves all steps of a layer: its fields
 * are set before each, so that a hot step makes no closures and no strings.
 */
import type { CachedGraph, GraphStep } from '@nexus/graphs'
import {
  type BufferHandle,
  binding,
  type CountRingHandle,
  call,
  type LayerGraphHandle,
  type LayerHandle,
  type LayerPlanHandle,
  type RawStepStats,
  type StreamHandle,
} from '../native.js'

/** A recorded step of one layer. */
export class RecordedStep implements CachedGraph {
  readonly handle: LayerGraphHandle
  readonly bytes: number
  readonly bytesEstimated: boolean
  readonly captureMs: number
  readonly nodes: number

  constructor(handle: LayerGraphHandle) {
    const info = binding().core.layerGraphInfo(handle)
    this.handle = handle
    this.bytes = info.bytes
    this.bytesEstimated = info.bytesEstimated
    this.captureMs = info.captureMs
    this.nodes = info.nodes
  }

  dispose(): void {
    call(() => binding().native.release(this.handle))
  }
}

/** What is native of a step: set before each run. */
export interface StepCall {
  stream: StreamHandle
  x: BufferHandle
  tokens: number
  logits: BufferHandle | null
  out: BufferHandle
  ids: BufferHandle | null
  weights: BufferHandle | null
  /** With counts and times. */
  measured: boolean
}

/** A step in its two forms; each is one native call. */
export class LayerStep implements GraphStep<RecordedStep, Promise<RawStepStats> | undefined> {
  readonly #layer: LayerHandle
  readonly #ring: CountRingHandle | null
  plan: LayerPlanHandle | null = null
  call: StepCall
  tokens = 0
  bucket = 0
  /** The step becomes part of a graph of the caller's, whose launches are not counted. */
  foreign = false

  constructor(layer: LayerHandle, ring: CountRingHandle | null, first: StepCall) {
    this.#layer = layer
    this.#ring = ring
    this.call = first
  }

  eager(): Promise<RawStepStats> | undefined {
    const { stream, x, tokens, logits, out, ids, weights, measured } = this.call
    const { core } = binding()
    if (measured) {
      return core.layerForward(this.#layer, stream, x, tokens, logits, out, ids, weights, this.plan, this.#ring)
    }
    const ring = this.foreign ? null : this.#ring
    core.layerEnqueue(this.#layer, stream, x, tokens, logits, out, this.plan, ring)
    return undefined
  }

  capture(): RecordedStep {
    const { stream, logits } = this.call
    return call(() => {
      const { core, native } = binding()
      const handle = core.layerCapture(this.#layer, stream, this.bucket, logits !== null, this.plan, this.#ring)
      try {
        return new RecordedStep(handle)
      } catch (error) {
        native.release(handle)
        throw error
      }
    })
  }

  replay(graph: RecordedStep): Promise<RawStepStats> | undefined {
    const { stream, x, tokens, logits, out, ids, weights, measured } = this.call
    const { core } = binding()
    if (measured) {
      return core.layerReplayForward(this.#layer, graph.handle, stream, x, tokens, logits, out, ids, weights)
    }
    core.layerReplay(this.#layer, graph.handle, stream, x, tokens, logits, out)
    return undefined
  }
}
