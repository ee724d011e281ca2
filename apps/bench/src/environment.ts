/** What a result file says of where it was measured. */
import { systemInfo } from '@nexus/core'

export interface Environment {
  readonly date: string
  readonly node: string
  readonly device: string
  readonly driver: string | null
  readonly cudaRuntime: string | null
  readonly cpu: string
  readonly cpuThreads: number
}

/** @param device a device's name; 'cuda' is the first one */
export function environment(device: string): Environment {
  const deviceName = device === 'cuda' ? 'cuda:0' : device
  const { machine } = systemInfo()
  const gpu = machine?.cuda.devices.find((d) => d.device === deviceName)
  return {
    date: new Date().toISOString(),
    node: process.version,
    device: gpu?.name ?? deviceName,
    driver: gpu ? (machine?.nvml.detail ?? null) : null,
    cudaRuntime: gpu ? (machine?.cuda.runtimeVersion ?? null) : null,
    cpu: machine?.cpu.name ?? 'unknown',
    cpuThreads: machine?.cpu.threads ?? 0,
  }
}
