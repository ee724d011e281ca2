/**
 * The energy of a layer's life, from the samples of a monitor: nothing here waits for one. The device is metered as a whole, so the
 * figures are the layer's own only where it has the device to itself.
 */
import { EnergyMonitor, type PowerSample } from '@nexus/energy'
import type { DeviceName } from '@nexus/native'

/** What a layer's steps cost in energy so far. */
export interface LayerEnergyStats {
  /** What is metered: `'cpu'`, `'cuda:0'`, or a UUID. */
  readonly device: string
  /** From the first sample of the layer's life to the last one; 0 before the second. */
  readonly windowMs: number
  /** Of the whole device in the window; `null` with `reason`. */
  readonly joules: number | null
  /** joules / window. */
  readonly watts: number | null
  /** Tokens queued in the window. */
  readonly tokens: number
  readonly tokensPerJoule: number | null
  /** Why `joules` is `null`; `null` where it is known. */
  readonly reason: string | null
}

/** A GPU's counter moves about ten times a second: fewer moves in a window leave the energy unknown by more than a tenth. */
const leastTicks = 10

/** A monitor whose last sample is older than this many of its intervals, and than this many milliseconds, has stopped. */
const stoppedIntervals = 4
const stoppedMs = 1000

/** Follows the tokens of a layer and the samples of a monitor over the layer's life. */
export class EnergyWindow {
  readonly #monitor: EnergyMonitor
  readonly #own: boolean
  readonly #startMs = performance.now()
  #first: PowerSample | null = null
  /** What the last call of `stepJoules` ended at. */
  #last: { readonly sample: PowerSample; readonly steps: number } | null = null

  /** @param given a monitor of the caller's, or `true` for one of this window's own */
  constructor(given: true | EnergyMonitor, device: DeviceName) {
    this.#own = given === true
    this.#monitor = given === true ? new EnergyMonitor({ device }) : given
  }

  /**
   * Mean joules of a step since the last call; `null` where that is not known, or the counter moved too seldom to say.
   * @param steps queued so far
   */
  stepJoules(steps: number): number | null {
    if (this.#monitor.disposed) return null
    const from = this.#last
    const sample = this.#monitor.samples({ sinceMs: from?.sample.timeMs ?? this.#startMs }).at(-1)
    if (sample === undefined) return null
    this.#first ??= sample
    if (from === null) {
      this.#last = { sample, steps }
      return null
    }
    const joules = difference(from.sample, sample)
    if (typeof joules === 'string' || steps <= from.steps) return null
    this.#last = { sample, steps }
    return joules / (steps - from.steps)
  }

  /** @param tokens queued so far */
  stats(tokens: number): LayerEnergyStats {
    const { device } = this.#monitor
    const unknown = (reason: string, windowMs = 0): LayerEnergyStats => {
      return { device, windowMs, joules: null, watts: null, tokens, tokensPerJoule: null, reason }
    }
    if (this.#monitor.disposed) return unknown('the energy monitor was disposed of')
    const samples = this.#monitor.samples({ sinceMs: this.#startMs })
    this.#first ??= samples[0] ?? null
    const [first, last] = [this.#first, samples.at(-1)]
    if (first === null || last === undefined) return unknown('there is no sample yet')
    const windowMs = last.timeMs - first.timeMs
    const stopped = this.#stopped(last)
    if (stopped !== null) return unknown(stopped, windowMs)
    const joules = difference(first, last)
    if (typeof joules === 'string') return unknown(this.#monitor.status().unknown.joules ?? joules, windowMs)
    return {
      device,
      windowMs,
      joules,
      watts: (1000 * joules) / windowMs,
      tokens,
      tokensPerJoule: joules > 0 ? tokens / joules : null,
      reason: null,
    }
  }

  /** Why samples do not come any more: tokens are still counted, so that what they took is not known. `null` while samples come. */
  #stopped({ timeMs }: PowerSample): string | null {
    const ageMs = performance.now() - timeMs
    if (ageMs <= Math.max(stoppedMs, stoppedIntervals * this.#monitor.intervalMs)) return null
    const { blocked } = this.#monitor.status()
    const why = blocked === null ? '' : `: ${blocked.call} has not returned for ${Math.round(blocked.ms)} ms`
    return `the last sample is ${Math.round(ageMs)} ms old${why}`
  }

  dispose(): void {
    if (this.#own) this.#monitor.dispose()
  }
}

/** Joules between two samples. A text is why they are not known. */
function difference(first: PowerSample, last: PowerSample): number | string {
  if (first.joules === null || last.joules === null) return 'the energy counter was not readable'
  if (first.resets !== last.resets) return 'the energy counter went back in the window (it was reset)'
  const ticks = last.ticks - first.ticks
  if (ticks < leastTicks) return `the energy counter moved ${ticks} times so far, fewer than ${leastTicks}`
  return last.joules - first.joules
}
