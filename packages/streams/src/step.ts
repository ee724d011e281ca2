/** One step that a tenant has queued, and what became of it. */
import { Event, type Stream } from '@nexus/native'

/**
 * A step of one tenant, under way. Nothing waits for it but who asks: `done()` for the host, `before(stream)` for other work of the device.
 */
export class TenantStep {
  /** What the tenant returned. */
  readonly value: unknown
  readonly #stream: Stream
  readonly #end: Event

  /** @internal */
  constructor(stream: Stream, value: unknown) {
    this.value = value
    this.#stream = stream
    this.#end = Event.create(stream.device)
    this.#end.record(stream)
  }

  /** True when the step has finished. Never waits. @throws what went wrong in the step */
  get ready(): boolean {
    return this.#end.ready
  }

  /** What is queued on `stream` from now on starts after the step. */
  before(stream: Stream): void {
    stream.wait(this.#end)
  }

  /**
   * Resolves with what the tenant returned when the step has finished (and with it what the tenant had queued until this call); rejects with
   * what went wrong.
   */
  async done(): Promise<unknown> {
    if (!this.#end.ready && !this.#stream.disposed) await this.#stream.synchronize()
    // The stream went with its schedule, which does not end what is under way.
    for (let waitMs = 1; !this.#end.ready; waitMs = Math.min(2 * waitMs, 8)) {
      await new Promise((resolve) => setTimeout(resolve, waitMs))
    }
    return await this.value
  }

  /** Frees the step's event; the step itself goes on. Twice is fine. */
  dispose(): void {
    this.#end.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
