/** What the machine has and what of it Nexus can use. */

import type { RawSystemInfo } from './binding.js'
import { call } from './call.js'
import { type DeviceName, type DeviceSpec, deviceIndex, resolveDevice } from './device.js'
import { type FoundBy, loadAddon } from './loader.js'
import { checkInteger } from './options.js'

export interface CudaDeviceInfo {
  readonly device: DeviceName
  readonly name: string
  readonly uuid: string
  /** Compute capability, such as `9.0`. */
  readonly computeCapability: string
  readonly multiprocessors: number
  readonly memoryBytes: number
  readonly l2Bytes: number
  readonly sharedMemoryPerBlockBytes: number
  readonly memoryPools: boolean
}

/** What the addon reports; `null` as a whole where it cannot be loaded. */
export interface MachineInfo {
  readonly cpu: {
    readonly name: string
    /** The instruction set in use: 'avx512', 'avx2' or 'scalar'. */
    readonly isa: string
    readonly isas: readonly string[]
    readonly cores: number
    /** Threads that the CPU backend uses. */
    readonly threads: number
  }
  readonly memoryBytes: number
  readonly cuda: {
    /** Whether the addon was built with CUDA. */
    readonly compiled: boolean
    readonly usable: boolean
    /** 'ok', or one sentence why CUDA cannot be used. */
    readonly status: string
    /** The runtime's own name of the error. */
    readonly error: string | null
    /** Such as '13.0'. */
    readonly runtimeVersion: string | null
    readonly driverVersion: string | null
    readonly greenContexts: boolean
    readonly tensorMaps: boolean
    readonly devices: readonly CudaDeviceInfo[]
  }
  readonly nvml: {
    readonly available: boolean
    readonly detail: string
    readonly library: string | null
    /** Per device: 'disabled', 'enabled' or 'unsupported'. */
    readonly migModes: readonly string[]
    readonly energyCounter: boolean
  }
  readonly rapl: {
    /** Energy counters of the CPU that this process may read. */
    readonly domains: readonly string[]
    readonly detail: string
  }
}

export interface SystemInfo {
  readonly node: string
  readonly platform: string
  readonly arch: string
  readonly addon: { readonly path: string; readonly foundBy: FoundBy } | { readonly error: string }
  /** `null` when the addon cannot be loaded: `addon.error` says why. */
  readonly machine: MachineInfo | null
}

const version = (v: number): string | null =>
  v === 0 ? null : `${Math.floor(v / 1000)}.${Math.floor((v % 1000) / 10)}`

function machineOf(raw: RawSystemInfo): MachineInfo {
  return {
    cpu: {
      name: raw.cpuName,
      isa: raw.cpuIsa,
      isas: raw.cpuIsas,
      cores: raw.cpuCores,
      threads: raw.cpuThreads,
    },
    memoryBytes: raw.memoryBytes,
    cuda: {
      compiled: raw.cudaCompiled,
      usable: raw.cudaStatus === 'ok' && raw.devices.length > 0,
      status: raw.cudaStatus,
      error: raw.cudaError === '' ? null : raw.cudaError,
      runtimeVersion: version(raw.cudaRuntimeVersion),
      driverVersion: version(raw.cudaDriverVersion),
      greenContexts: raw.greenContexts,
      tensorMaps: raw.tensorMaps,
      devices: raw.devices.map((d) => ({
        device: `cuda:${d.index}` as const,
        name: d.name,
        uuid: d.uuid,
        computeCapability: `${d.computeMajor}.${d.computeMinor}`,
        multiprocessors: d.multiprocessors,
        memoryBytes: d.memoryBytes,
        l2Bytes: d.l2Bytes,
        sharedMemoryPerBlockBytes: d.sharedMemoryPerBlockOptin,
        memoryPools: d.memoryPools,
      })),
    },
    nvml: { ...raw.nvml, library: raw.nvml.library === '' ? null : raw.nvml.library },
    rapl: { domains: raw.raplDomains, detail: raw.raplDetail },
  }
}

/** What this machine has. Never throws: without an addon, `addon` holds the error and `machine` is `null`. */
export function systemInfo(): SystemInfo {
  const here = { node: process.version, platform: process.platform, arch: process.arch }
  try {
    const { path, foundBy, binding } = loadAddon()
    return { ...here, addon: { path, foundBy }, machine: machineOf(binding.native.systemInfo()) }
  } catch (error) {
    return { ...here, addon: { error: error instanceof Error ? error.message : String(error) }, machine: null }
  }
}

export interface MemoryStats {
  /** Bytes held by tensors and workspaces that are alive (not the cached reserve of the memory pool). */
  readonly liveBytes: number
  readonly liveBuffers: number
  /** The most that `liveBytes` has been. */
  readonly peakBytes: number
  /** Of the device, or of the machine for the CPU; `null` when unknown. */
  readonly freeBytes: number | null
  readonly totalBytes: number | null
}

/** @throws UnsupportedError where there is no such device */
export function memoryStats(device: DeviceSpec): MemoryStats {
  const index = deviceIndex(resolveDevice(device))
  const raw = call((b) => b.native.memoryStats(index))
  return {
    liveBytes: raw.liveBytes,
    liveBuffers: raw.liveBuffers,
    peakBytes: raw.peakBytes,
    freeBytes: raw.freeBytes < 0 ? null : raw.freeBytes,
    totalBytes: raw.totalBytes < 0 ? null : raw.totalBytes,
  }
}

/** Threads of the CPU backend, shared by the process. Results never depend on their number. */
export function cpuThreads(): number {
  return call((b) => b.native.cpuThreads())
}

/**
 * Sets the number of CPU threads, from the next operation on.
 * @throws TypeError, RangeError when `n` is not an integer from 1 to 1024
 */
export function setCpuThreads(n: number): void {
  const threads = checkInteger('n', n, 1, 1024)
  call((b) => b.native.setCpuThreads(threads))
}
