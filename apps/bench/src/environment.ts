/** What a result file says of where it was measured. */
import { systemInfo } from '@nexus/core'

export interface Environment {
  readonly date: string
  readonly node: string
  readonly device: string
  readonly driver: string | null
  readonly cudaRuntime: number | null
  readonly cpu: string
  readonly cpuThreads: number
}

export function environment(deviceName: string): Environment {
  const info = systemInfo()
  const cuda = info.cuda
  const gpu = cuda?.devices.find((d) => `cuda:${d.index}` === deviceName)
  return {
    date: new Date().toISOString(),
    node: process.version,
    device: gpu ? gpu.name : (info.cpu?.name ?? deviceName),
    driver: info.nvml?.available ? info.nvml.detail : null,
    cudaRuntime: cuda?.runtimeVersion ?? null,
    cpu: info.cpu?.name ?? 'unknown',
    cpuThreads: info.cpu?.threads ?? 0,
  }
}
