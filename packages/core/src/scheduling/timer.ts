/**
 * Times one step now and then, by two events around it that are read long after: neither the device nor the host waits for them. So the
 * predictions are corrected also where all steps come by `enqueue`, which measures nothing itself.
 */
import { type DeviceName, Event, type Stream } from '@nexus/native'
import type { StrategyName } from './options.js'

/** What a timed step took on the device. */
export interface TimedStep {
  readonly strategy: StrategyName
  readonly tokens: number
  readonly ms: number
}

export class StepTimer {
  readonly #start: Event
  readonly #end: Event
  /** Ready for a step, inside one, or behind one that may still run. */
  #state: 'armed' | 'open' | 'pending' = 'armed'
  #strategy: StrategyName = 'fused'
  #tokens = 0

  constructor(device: DeviceName) {
    this.#start = Event.create(device)
    this.#end = Event.create(device)
  }

  get armed(): boolean {
    return this.#state === 'armed'
  }

  /** The step comes next on `stream`. */
  begin(stream: Stream): void {
    this.#start.record(stream)
    this.#state = 'open'
  }

  /** The step that `begin` was called before has been queued. */
  end(stream: Stream, strategy: StrategyName, tokens: number): void {
    this.#end.record(stream)
    this.#strategy = strategy
    this.#tokens = tokens
    this.#state = 'pending'
  }

  /** What was timed, when it has finished; `null` otherwise. The next step may be timed then. */
  take(): TimedStep | null {
    if (this.#state === 'open') this.#state = 'armed'
    if (this.#state !== 'pending' || !this.#end.ready) return null
    this.#state = 'armed'
    return { strategy: this.#strategy, tokens: this.#tokens, ms: this.#start.elapsedMs(this.#end) }
  }

  dispose(): void {
    this.#start.dispose()
    this.#end.dispose()
  }
}
