/**
 * A device under observation. The sampling is native, on one thread for all monitors; here are windows: a sample before, the work,
 * a sample after. Nothing in here waits for a driver longer than `watchdogMs`.
 */
import {
  checkInteger,
  checkNumber,
  checkOptions,
  type DeviceName,
  type DeviceSpec,
  DisposedError,
  describe,
  resolveDevice,
  systemInfo,
} from '@nexus/native'
import { measurementOf } from './measurement.js'
import type { EnergyStatus, IdleBaseline, Measurement, PowerSample } from './model.js'
import {
  binding,
  type EnergyMonitorHandle,
  readMonitor,
  requestSample,
  startMonitor,
  stopMonitor,
  type View,
} from './native.js'
import { pause, throwIfAborted } from './wait.js'

export interface EnergyMonitorOptions {
  /**
   * A device, or the UUID of a GPU or MIG instance as `energyInventory` lists them (which needs no CUDA).
   * @default 'auto'
   */
  readonly device?: DeviceSpec | `GPU-${string}` | `MIG-${string}`
  /**
   * Time between two samples: 1 to 3 600 000.
   * @default 100
   */
  readonly intervalMs?: number
  /**
   * Samples that are kept: 2 to 10 000 000. Counters measure windows of any length; integrals and means need their samples.
   * @default 6000
   */
  readonly historySamples?: number
  /**
   * How long to wait for a sample that was asked for, before it is given up as unknown: 10 to 600 000.
   * @default 2000
   */
  readonly watchdogMs?: number
  /**
   * Power of the idle device, when it is known already; `measureIdle` measures it.
   * @default none
   */
  readonly idleWatts?: number
  /**
   * Disposes the monitor when it aborts.
   * @default none
   */
  readonly signal?: AbortSignal
}

export interface MeasureOptions {
  /**
   * Rejects with its reason when it aborts. The function is not interrupted: give it the signal as well.
   * @default none
   */
  readonly signal?: AbortSignal
}

export interface IdleOptions extends MeasureOptions {
  /**
   * 100 to 600 000.
   * @default 3000
   */
  readonly durationMs?: number
}

const NO_BASELINE = 'no idle baseline: call measureIdle() while the device has nothing to do, or give idleWatts'
/** A device of which more was in use than this is not idle. */
const IDLE_UTILISATION = 0.05

interface Target {
  readonly device: DeviceName | string
  readonly uuid: string | null
}

function targetOf(spec: unknown): Target {
  if (typeof spec === 'string' && /^(GPU|MIG)-/.test(spec)) {
    if (!/^(GPU|MIG)-[0-9a-fA-F-]{8,64}$/.test(spec)) {
      throw new RangeError(`device: expected a UUID such as 'GPU-01234567-…', got ${describe(spec)}`)
    }
    return { device: spec, uuid: spec }
  }
  const device = resolveDevice(spec as DeviceSpec)
  if (device === 'cpu') return { device, uuid: null }
  const uuid = systemInfo().machine?.cuda.devices.find((each) => each.device === device)?.uuid
  return { device, uuid: uuid ?? device }
}

/**
 * Meters one device for as long as it lives.
 *
 * ```ts
 * using monitor = new EnergyMonitor({ device: 'cuda' })
 * await monitor.measureIdle()
 * const { joules, source, reason } = await monitor.measure(() => runManySteps())
 * ```
 */
export class EnergyMonitor {
  /** `'cpu'`, `'cuda:0'`, or the UUID that was given. */
  readonly device: string
  /** The UUID by which NVML knows it; `null` for the CPU. */
  readonly uuid: string | null
  readonly intervalMs: number
  readonly #watchdogMs: number
  readonly #signal: AbortSignal | undefined
  readonly #onAbort = (): void => this.dispose()
  #handle: EnergyMonitorHandle | null
  #idleWatts: number | null

  /**
   * Starts sampling.
   * @throws TypeError, RangeError for wrong options; UnsupportedError where there is no such device; NativeLoadError. An NVML or
   * a counter that is not there is no error: figures are `null`, and `status()` says why.
   */
  constructor(options: EnergyMonitorOptions = {}) {
    checkOptions('EnergyMonitor', options, [
      'device',
      'intervalMs',
      'historySamples',
      'watchdogMs',
      'idleWatts',
      'signal',
    ])
    const { intervalMs = 100, historySamples = 6000, watchdogMs = 2000, idleWatts, signal } = options
    checkNumber('intervalMs', intervalMs, 1, 3_600_000)
    checkInteger('historySamples', historySamples, 2, 10_000_000)
    this.#watchdogMs = checkNumber('watchdogMs', watchdogMs, 10, 600_000)
    this.#idleWatts = idleWatts === undefined ? null : checkNumber('idleWatts', idleWatts, 0)
    checkSignal(signal)
    throwIfAborted(signal)
    const { device, uuid } = targetOf(options.device ?? 'auto')
    this.device = device
    this.uuid = uuid
    this.intervalMs = intervalMs
    this.#handle = startMonitor(uuid ?? 'cpu', intervalMs, historySamples)
    this.#signal = signal
    signal?.addEventListener('abort', this.#onAbort, { once: true })
  }

  /**
   * Runs `fn` and measures what the device used meanwhile: all of it, whoever used it. Work that `fn` leaves running is not in
   * the window: await `stream.synchronize()`, or `forward`, at its end. Measurements may overlap; each then has the whole.
   * @throws what `fn` throws; the signals' reasons; DisposedError when the monitor is disposed meanwhile
   */
  async measure<T>(fn: () => T, options: MeasureOptions = {}): Promise<Measurement & { readonly result: Awaited<T> }> {
    if (typeof fn !== 'function') throw new TypeError(`fn: expected a function, got ${describe(fn)}`)
    checkOptions('measure', options, ['signal'])
    checkSignal(options.signal)
    const before = await this.#sample(options.signal)
    const startMs = performance.now()
    const result = await fn()
    const endMs = performance.now()
    const after = await this.#sample(options.signal)
    const view = readMonitor(this.#open(), typeof before === 'string' ? startMs : before.timeMs)
    const measurement = measurementOf({
      device: this.device,
      kind: this.uuid === null ? 'cpu' : 'gpu',
      intervalMs: this.intervalMs,
      startMs,
      endMs,
      before,
      after,
      samples: view.samples,
      unknown: view.unknown,
      idleWatts: this.#idleWatts ?? NO_BASELINE,
    })
    return { ...measurement, result }
  }

  /**
   * Measures the device while nothing runs on it, and separates `idleJoules` from then on. `watts` is `null`, and what was known
   * before stays, where energy cannot be measured or more than 5 % of the GPU was in use.
   * @throws TypeError, RangeError for wrong options; as `measure`
   */
  async measureIdle(options: IdleOptions = {}): Promise<IdleBaseline> {
    checkOptions('measureIdle', options, ['durationMs', 'signal'])
    const { durationMs = 3000, signal } = options
    checkNumber('durationMs', durationMs, 100, 600_000)
    checkSignal(signal)
    const seen = await this.measure(() => pause(durationMs, signal), signal === undefined ? {} : { signal })
    const { windowMs, source, meanWatts, gpuUtilisation } = seen
    if (gpuUtilisation !== null && gpuUtilisation > IDLE_UTILISATION) {
      const reason = `the GPU was in use for ${Math.round(100 * gpuUtilisation)} % of the time: no idle baseline`
      return { watts: null, source: null, windowMs, reason }
    }
    if (meanWatts !== null) this.#idleWatts = meanWatts
    return { watts: meanWatts, source, windowMs, reason: seen.reason }
  }

  /** The idle power that measurements use; `null` while it is not known. */
  get idleWatts(): number | null {
    return this.#idleWatts
  }

  /**
   * The samples that are kept, oldest first; those at or after `sinceMs` of `performance.now()`.
   * @throws DisposedError
   */
  samples(options: { readonly sinceMs?: number } = {}): PowerSample[] {
    checkOptions('samples', options, ['sinceMs'])
    const sinceMs = options.sinceMs === undefined ? -1e12 : checkNumber('sinceMs', options.sinceMs)
    return readMonitor(this.#open(), sinceMs).samples
  }

  /**
   * What is unknown now, and why; which driver call is outstanding.
   * @throws DisposedError
   */
  status(): EnergyStatus {
    const { unknown, blocked, droppedSamples } = readMonitor(this.#open(), Number.MAX_VALUE)
    return { unknown, blocked, droppedSamples }
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#handle === null
  }

  /** Stops sampling. Twice is fine. */
  dispose(): void {
    const handle = this.#handle
    if (handle === null) return
    this.#handle = null
    this.#signal?.removeEventListener('abort', this.#onAbort)
    stopMonitor(handle)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #open(): EnergyMonitorHandle {
    if (this.#handle !== null) return this.#handle
    throwIfAborted(this.#signal)
    throw new DisposedError('energy monitor: was disposed')
  }

  /** A sample taken now; a text is why none came. */
  async #sample(signal: AbortSignal | undefined): Promise<PowerSample | string> {
    throwIfAborted(signal)
    const since = requestSample(this.#open())
    const deadline = performance.now() + this.#watchdogMs
    for (let waitMs = 1; ; waitMs = Math.min(2 * waitMs, 8)) {
      const view: View = readMonitor(this.#open(), since)
      const sample = view.samples[0]
      if (sample !== undefined) return sample
      if (view.blocked !== null && view.blocked.ms > this.#watchdogMs) {
        return `NVML hangs: ${view.blocked.call} has not returned for ${Math.round(view.blocked.ms)} ms`
      }
      if (performance.now() > deadline) {
        const { call, ms } = binding().energy.blockedCall()
        const inCall = call === '' ? '' : ` (it is in ${call} for ${Math.round(ms)} ms)`
        return `the sampler gave no sample within ${this.#watchdogMs} ms${inCall}`
      }
      await pause(waitMs, signal)
    }
  }
}

function checkSignal(signal: unknown): void {
  if (signal === undefined || signal instanceof AbortSignal) return
  throw new TypeError(`signal: expected an AbortSignal, got ${describe(signal)}`)
}
