/** One paragraph about the machine. */
import type { SystemInfo } from '@nexus/native'
import { bytes } from './format.js'
import type { Style } from './style.js'

export function machineLines(info: SystemInfo, device: string, style: Style): string[] {
  const lines = [`Node    ${info.node} on ${info.platform} ${info.arch}`, `Device  ${style.green(device)}`]
  if (info.machine) {
    const { cpu, cuda, memoryBytes } = info.machine
    const gpus = cuda.devices.map(
      (gpu) =>
        `${gpu.device} ${gpu.name}, ${gpu.multiprocessors} SMs, ${bytes(gpu.memoryBytes)}, compute ${gpu.computeCapability}`,
    )
    lines.unshift(
      `CPU     ${cpu.name}, ${cpu.threads} threads on ${cpu.cores} cores, ${cpu.isa}, ${bytes(memoryBytes)}`,
      ...(gpus.length > 0 ? gpus : [`none: ${cuda.status}`]).map(
        (line, i) => `${i === 0 ? 'GPU ' : '    '}    ${line}`,
      ),
    )
  }
  return [style.bold('Machine'), ...lines]
}
