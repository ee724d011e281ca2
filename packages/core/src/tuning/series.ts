/** Times of work on the device: launches that were recorded together, between two events. */
import { type DeviceName, Event, Graph, type Stream } from '@nexus/native'

/** The loads that everything is measured by. */
export const loads = ['even', 'skewed'] as const
export type LoadName = (typeof loads)[number]

/** How long the launches of one series are to take together. */
export const sampleUs = 300
const mostLaunches = 64

/** Launches that were recorded together. */
export interface Series extends Disposable {
  readonly launches: number
  /** Runs them and returns the device time of one, in microseconds. */
  sampleUs(): Promise<number>
}

/** How many launches a series needs: a whole rotation over weights and inputs where it is affordable. */
export function launchCount(rotation: number, estimateUs: number): number {
  const enough = Math.ceil(sampleUs / Math.max(estimateUs, 0.5))
  const whole = enough < rotation && rotation * estimateUs < 4 * sampleUs
  return Math.max(1, Math.min(mostLaunches, whole ? rotation : enough))
}

/** Two events on one stream. */
export class StreamTimer {
  readonly #stream: Stream
  readonly #start: Event
  readonly #end: Event

  constructor(device: DeviceName, stream: Stream) {
    this.#stream = stream
    this.#start = Event.create(device)
    try {
      this.#end = Event.create(device)
    } catch (error) {
      this.#start.dispose()
      throw error
    }
  }

  /** Microseconds on the device of what `work` queues on the stream. */
  async us(work: () => void): Promise<number> {
    this.#start.record(this.#stream)
    work()
    this.#end.record(this.#stream)
    await this.#stream.synchronize()
    return 1e3 * this.#start.elapsedMs(this.#end)
  }

  /** `launch(0)` to `launch(launches - 1)` as one graph. */
  series(launches: number, launch: (i: number) => void): Series {
    const graph = Graph.capture(this.#stream, () => {
      for (let i = 0; i < launches; i++) launch(i)
    })
    return {
      launches,
      sampleUs: async () => (await this.us(() => graph.launch(this.#stream))) / launches,
      [Symbol.dispose]: () => graph.dispose(),
    }
  }

  dispose(): void {
    this.#start.dispose()
    this.#end.dispose()
  }
}
