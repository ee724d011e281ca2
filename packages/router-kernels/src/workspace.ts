/**
 * Scratch memory of a primitive: one block per stream, kept from call to call and growing to the largest, so that a step allocates nothing
 * and work on different streams never shares scratch. A graph may be launched on any stream, beside whatever its own stream does then:
 * a recording takes its stream's block for good, and the next call on that stream makes a new one.
 */
import { GraphCaptureError, type Stream } from '@nexus/native'
import { type BufferHandle, binding, type Capture, call, captureOn, streamOf } from './native.js'

interface Block {
  readonly handle: BufferHandle
  readonly bytes: number
}

export class Workspace {
  readonly #blocks = new Map<Stream, Block>()
  readonly #recorded = new WeakMap<Capture, Map<Stream, Block>>()
  #disposed = false

  /**
   * At least `bytes` bytes for work queued on `stream`, in its order.
   * @throws GraphCaptureError while the stream is recorded and no call before has made a block that large; OutOfMemoryError
   */
  take(stream: Stream, bytes: number): BufferHandle {
    const capture = captureOn(stream)
    if (capture !== null) return this.#claim(capture, stream, bytes)
    const held = this.#blocks.get(stream)
    return held !== undefined && held.bytes >= bytes ? held.handle : this.#grow(stream, bytes)
  }

  /** Frees the blocks behind the work that uses them; those of graphs live as long as these. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    for (const block of this.#blocks.values()) release(block)
    this.#blocks.clear()
  }

  #grow(stream: Stream, bytes: number): BufferHandle {
    const on = streamOf(stream)
    for (const [owner, block] of this.#blocks) {
      if (owner !== stream && !owner.disposed) continue
      this.#blocks.delete(owner)
      release(block)
    }
    const handle = call(() => binding().native.bufferCreate(on, bytes))
    this.#blocks.set(stream, { handle, bytes })
    return handle
  }

  #claim(capture: Capture, stream: Stream, bytes: number): BufferHandle {
    const claimed = this.#claimedBy(capture)
    const own = claimed.get(stream) ?? this.#blocks.get(stream)
    if (own === undefined || own.bytes < bytes) {
      throw new GraphCaptureError(
        `stream: ${bytes} bytes of workspace cannot be allocated while it is recorded: run the same call on it once before`,
      )
    }
    this.#blocks.delete(stream)
    claimed.set(stream, own)
    return own.handle
  }

  #claimedBy(capture: Capture): Map<Stream, Block> {
    const known = this.#recorded.get(capture)
    if (known !== undefined) return known
    const claimed = new Map<Stream, Block>()
    this.#recorded.set(capture, claimed)
    capture.onEnd((recorded) => {
      for (const [stream, block] of claimed) {
        // The graph keeps the buffer itself. Without one nothing has run, and the block is free again.
        if (recorded || this.#disposed || this.#blocks.has(stream)) release(block)
        else this.#blocks.set(stream, block)
      }
    })
    return claimed
  }
}

function release(block: Block): void {
  call(() => binding().native.release(block.handle))
}
