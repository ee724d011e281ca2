/** What can be metered on this machine: GPUs, their MIG instances (read only), the processor's counters. */
import { checkNumber, checkOptions, describe } from '@nexus/native'
import { binding, call, type RawEnergyInventory } from './native.js'
import { pause, throwIfAborted } from './wait.js'

/** A MIG instance. `null`: could not be read, `detail` says why. */
export interface MigInfo {
  readonly uuid: string
  readonly gpuInstance: number | null
  readonly computeInstance: number | null
  readonly multiprocessors: number | null
  readonly memoryBytes: number | null
  readonly detail: string
}

export interface GpuInfo {
  /** NVML's own, which `CUDA_VISIBLE_DEVICES` does not change. */
  readonly index: number
  readonly uuid: string
  readonly name: string
  /** 'enabled', 'disabled', 'unsupported', or why it is not known. */
  readonly migMode: string
  readonly memoryBytes: number | null
  readonly migInstances: readonly MigInfo[]
  /** What could not be read, and why; empty when all was. */
  readonly detail: string
}

export interface EnergyInventory {
  readonly nvml: {
    readonly available: boolean
    readonly library: string | null
    /** The driver's version, or why NVML is not available. */
    readonly detail: string
  }
  readonly gpus: readonly GpuInfo[]
  readonly rapl: {
    readonly domains: readonly string[]
    /** Why some or all are missing. */
    readonly detail: string
  }
}

export interface InventoryOptions {
  /**
   * How long to wait for NVML: 10 to 600 000.
   * @default 2000
   */
  readonly watchdogMs?: number
  /** @default none */
  readonly signal?: AbortSignal
}

const known = (value: number): number | null => (value < 0 ? null : value)

function inventoryOf(raw: RawEnergyInventory): EnergyInventory {
  return {
    nvml: {
      available: raw.nvmlAvailable,
      library: raw.nvmlLibrary === '' ? null : raw.nvmlLibrary,
      detail: raw.nvmlDetail,
    },
    gpus: raw.gpus.map(({ memoryBytes, mig, ...gpu }) => ({
      ...gpu,
      memoryBytes: known(memoryBytes),
      migInstances: mig.map((each) => ({
        uuid: each.uuid,
        gpuInstance: known(each.gpuInstance),
        computeInstance: known(each.computeInstance),
        multiprocessors: known(each.multiprocessors),
        memoryBytes: known(each.memoryBytes),
        detail: each.detail,
      })),
    })),
    rapl: { domains: raw.raplDomains, detail: raw.raplDetail },
  }
}

/**
 * What there is to meter. Reads only; never changes a MIG layout. A driver that does not answer in time is reported as not available.
 * @throws TypeError, RangeError for wrong options; the signal's reason; NativeLoadError
 */
export async function energyInventory(options: InventoryOptions = {}): Promise<EnergyInventory> {
  checkOptions('energyInventory', options, ['watchdogMs', 'signal'])
  const { watchdogMs = 2000, signal } = options
  checkNumber('watchdogMs', watchdogMs, 10, 600_000)
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`signal: expected an AbortSignal, got ${describe(signal)}`)
  }
  throwIfAborted(signal)
  const request = call((b) => b.energy.inventoryRequest())
  const deadline = performance.now() + watchdogMs
  for (let waitMs = 1; ; waitMs = Math.min(2 * waitMs, 8)) {
    const answer = call((b) => b.energy.inventoryAnswer(request))
    if (answer !== null) return inventoryOf(answer)
    if (performance.now() > deadline) {
      const { call: name } = binding().energy.blockedCall()
      const detail = `NVML did not answer within ${watchdogMs} ms${name === '' ? '' : ` (${name})`}`
      return { nvml: { available: false, library: null, detail }, gpus: [], rapl: { domains: [], detail } }
    }
    await pause(waitMs, signal)
  }
}
