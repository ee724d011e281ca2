/**
 * Counts straight from the device: a router's last block writes the counts of each step into pinned host memory that the device sees
 * (CPU: the routing task into plain memory), so that following the load costs no copy, no graph node and no wait. The only part of this
 * package that needs the native addon.
 *
 * @packageDocumentation
 */
import {
  type CountRingHolder,
  checkInteger,
  type DeviceName,
  type DeviceSpec,
  DisposedError,
  describe,
  requireOptions,
  resolveDevice,
} from '@nexus/native'
import { type CountRingHandle, call, countRingHandle, deviceIndex, type RawRingReading } from '@nexus/native/binding'
import type { StepSample } from './model.js'
import type { ExpertProfiler } from './profiler.js'

const maxExperts = 1024
const maxCapacity = 2 ** 16

/** Options of {@link CountRing}. */
export interface CountRingOptions {
  /** @default 'auto' */
  readonly device?: DeviceSpec
  /** Experts of the router that writes it, 1 to 1024. */
  readonly numExperts: number
  /** Steps that it holds, 1 to 65536: those beyond it that were not read are overwritten, and counted. @default 256 */
  readonly capacity?: number
}

/** What the device wrote of one step. */
export interface CountedStep {
  /** Steps that went into the ring before this one. */
  readonly step: number
  readonly tokens: number
  /** Slots by expert; they sum to tokens·topK. */
  readonly counts: Int32Array
}

/** What is known of a step besides its counts. */
export type StepMeasures = Omit<StepSample, 'counts' | 'tokens'>

export interface CountRingStats {
  /** Steps that were read. */
  readonly read: number
  /** Steps that were overwritten before they were read. */
  readonly lost: number
}

/**
 * A ring of the counts of the last steps, written by the device and read whenever there is time: reading never waits, and sees the steps
 * that have finished. Serves one stream at a time: the router or layer that it is given to.
 *
 * @example
 * using ring = new CountRing({ numExperts: 128 })
 * router.route(x, undefined, { ring })
 * // now and then
 * ring.drainInto(profiler)
 */
export class CountRing implements CountRingHolder {
  readonly device: DeviceName
  readonly numExperts: number
  readonly capacity: number
  #handle: CountRingHandle | null
  #next = 0
  #read = 0
  #lost = 0

  /** @throws TypeError, RangeError naming the option; UnsupportedError when the device cannot be used; OutOfMemoryError */
  constructor(options: CountRingOptions) {
    requireOptions('CountRing options', options, ['device', 'numExperts', 'capacity'])
    this.numExperts = checkInteger('numExperts', options.numExperts, 1, maxExperts)
    this.capacity = checkInteger('capacity', options.capacity ?? 256, 1, maxCapacity)
    this.device = resolveDevice(options.device ?? 'auto')
    const device = deviceIndex(this.device)
    this.#handle = call((b) => b.profiler.countRingCreate(device, this.numExperts, this.capacity))
  }

  /**
   * The steps that have finished since the last reading, oldest first, and how many were overwritten before it came.
   * @throws DisposedError
   */
  read(): { steps: CountedStep[]; lost: number } {
    const raw = this.#reading()
    const steps = this.#steps(raw)
    this.#advance(raw.next, steps.length, raw.lost)
    return { steps, lost: raw.lost }
  }

  /**
   * Records the steps that have finished since the last reading into a profiler, oldest first. When that throws, the step and those behind it
   * stay to be read.
   * @param measures of every step, or by step
   * @returns how many steps
   * @throws TypeError, RangeError when the profiler is of another number of experts, or as its `record`; DisposedError
   */
  drainInto(profiler: ExpertProfiler, measures: StepMeasures | ((step: CountedStep) => StepMeasures) = {}): number {
    if (typeof profiler !== 'object' || profiler === null || typeof Reflect.get(profiler, 'record') !== 'function') {
      throw new TypeError(`profiler: expected an ExpertProfiler, got ${describe(profiler)}`)
    }
    const { numExperts } = profiler.options
    if (numExperts !== this.numExperts) {
      throw new RangeError(`profiler: expected one of ${this.numExperts} experts, got one of ${numExperts}`)
    }
    const raw = this.#reading()
    const steps = this.#steps(raw)
    this.#advance(steps[0]?.step ?? raw.next, 0, raw.lost)
    for (const step of steps) {
      const { counts, tokens } = step
      profiler.record({ ...(typeof measures === 'function' ? measures(step) : measures), counts, tokens })
      this.#advance(step.step + 1, 1, 0)
    }
    return steps.length
  }

  /** Since the ring was made. */
  stats(): CountRingStats {
    return { read: this.#read, lost: this.#lost }
  }

  get disposed(): boolean {
    return this.#handle === null
  }

  /** Frees the ring behind the work that writes it. Twice is fine. */
  dispose(): void {
    const handle = this.#handle
    this.#handle = null
    if (handle !== null) call((b) => b.native.release(handle))
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal */
  [countRingHandle](): CountRingHandle {
    if (this.#handle === null) throw new DisposedError('ring: was disposed')
    return this.#handle
  }

  #reading(): RawRingReading {
    const handle = this[countRingHandle]()
    return call((b) => b.profiler.countRingRead(handle, this.#next))
  }

  #steps({ steps, tokens, counts }: RawRingReading): CountedStep[] {
    const n = this.numExperts
    return Array.from(steps, (step, i) => ({
      step,
      tokens: tokens[i] ?? 0,
      counts: counts.slice(i * n, (i + 1) * n),
    }))
  }

  #advance(next: number, read: number, lost: number): void {
    this.#next = next
    this.#read += read
    this.#lost += lost
  }
}
