/** What can be metered on this machine: GPUs, their MIG instances (read only), the processor's counters. */
import { checkNumber, checkOptions, type DeviceSpec, describe, resolveDevice, systemInfo } from '@nexus/native'
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

/** A MIG instance, and the GPU that it is a part of. */
export interface MigInstance {
  readonly gpu: GpuInfo
  readonly instance: MigInfo
}

/** CUDA says `GPU-…` of a MIG device too, NVML says `MIG-…`: the digits are the same. */
const digits = (uuid: string): string => uuid.replace(/^(gpu|mig)-/i, '').toLowerCase()

/**
 * The MIG instance with this UUID, however it is written; `null` when there is none.
 * @throws TypeError when `uuid` is no string
 */
export function migInstanceOf(uuid: string, inventory: Pick<EnergyInventory, 'gpus'>): MigInstance | null {
  if (typeof uuid !== 'string') throw new TypeError(`uuid: expected a string, got ${describe(uuid)}`)
  for (const gpu of inventory.gpus) {
    const instance = gpu.migInstances.find((each) => digits(each.uuid) === digits(uuid))
    if (instance !== undefined) return { gpu, instance }
  }
  return null
}

/**
 * The MIG instance that this process was given as `device` (`CUDA_VISIBLE_DEVICES=MIG-…`), found by its UUID; `null` for a whole GPU, for the
 * CPU, and where NVML cannot say.
 * @throws as {@link energyInventory}; UnsupportedError where there is no such device
 */
export async function migOf(device: DeviceSpec = 'auto', options: InventoryOptions = {}): Promise<MigInstance | null> {
  const name = resolveDevice(device)
  const uuid = systemInfo().machine?.cuda.devices.find((each) => each.device === name)?.uuid
  return uuid === undefined ? null : migInstanceOf(uuid, await energyInventory(options))
}
