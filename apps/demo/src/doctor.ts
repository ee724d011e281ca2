/**
 * `nexus-demo doctor`: what the machine has, as a list of findings; for each thing that is missing, what to do. The findings are a
 * pure function of `systemInfo()`, so that machines which are not here can be tested.
 */
import { type MachineInfo, type SystemInfo, systemInfo } from '@nexus/native'
import { exitCode } from './exit.js'
import { bytes } from './format.js'
import type { Output } from './output.js'

export interface Finding {
  readonly name: string
  /** `missing` is something that would be used if it were there; only `broken` makes the installation unusable. */
  readonly status: 'ok' | 'missing' | 'broken'
  readonly detail: string
  /** What to do; `null` where nothing has to be done. */
  readonly todo: string | null
}

export interface DoctorReport {
  readonly schema: 'nexus-demo/doctor/1'
  readonly usable: boolean
  /** What `--device auto` takes; `null` where nothing can run. */
  readonly device: string | null
  readonly findings: readonly Finding[]
  readonly system: SystemInfo
}

const ok = (name: string, detail: string): Finding => ({ name, status: 'ok', detail, todo: null })
const missing = (name: string, detail: string, todo: string | null): Finding => ({
  name,
  status: 'missing',
  detail,
  todo,
})

const foundBy = {
  NEXUS_NATIVE_PATH: 'named by NEXUS_NATIVE_PATH',
  build: "this checkout's own build",
  package: "this platform's package",
} as const

export function examine(info: SystemInfo): DoctorReport {
  const findings = [nodeFinding(info)]
  if ('error' in info.addon) {
    const named = process.env.NEXUS_NATIVE_PATH
    findings.push({
      name: 'addon',
      status: 'broken',
      detail: info.addon.error,
      todo: named
        ? `NEXUS_NATIVE_PATH is set to '${named}': point it to a working nexus.node, or unset it`
        : 'build it: npm run build in a checkout, npx nexus-native build elsewhere (CMake >= 3.22 and a C++20 compiler)',
    })
    return { schema: 'nexus-demo/doctor/1', usable: false, device: null, findings, system: info }
  }
  findings.push(ok('addon', `${info.addon.path} (${foundBy[info.addon.foundBy]})`))
  const { machine } = info
  if (machine) {
    findings.push(cpuFinding(machine), cudaFinding(machine), ...deviceFindings(machine))
    findings.push(nvmlFinding(machine), migFinding(machine), ...energyFindings(machine))
  }
  const usable = findings.every((finding) => finding.status !== 'broken')
  const device = machine?.cuda.usable ? 'cuda:0' : 'cpu'
  return { schema: 'nexus-demo/doctor/1', usable, device: usable ? device : null, findings, system: info }
}

function nodeFinding(info: SystemInfo): Finding {
  const [major = 0, minor = 0] = info.node.replace(/^v/, '').split('.').map(Number)
  const detail = `${info.node} on ${info.platform} ${info.arch}`
  if (major > 20 || (major === 20 && minor >= 19)) return ok('node', detail)
  return { name: 'node', status: 'broken', detail, todo: 'install Node 20.19 or newer' }
}

function cpuFinding({ cpu, memoryBytes }: MachineInfo): Finding {
  // A wrong NEXUS_CPU_ISA or NEXUS_NUM_THREADS leaves nothing here.
  const wrong = [...(cpu.isa === '' ? ['NEXUS_CPU_ISA'] : []), ...(cpu.threads < 1 ? ['NEXUS_NUM_THREADS'] : [])]
  if (wrong.length > 0) {
    const detail = wrong.map((name) => `${name} is '${process.env[name] ?? ''}', which cannot be used`).join('; ')
    const todo = `unset it, or use one of ${cpu.isas.join(', ')} and 1 to 1024 threads`
    return { name: 'cpu', status: 'broken', detail, todo }
  }
  const isas = `${cpu.isa} (of ${cpu.isas.join(', ')})`
  return ok('cpu', `${cpu.name}: ${isas}, ${cpu.threads} threads on ${cpu.cores} cores, ${bytes(memoryBytes)}`)
}

function cudaFinding({ cuda }: MachineInfo): Finding {
  if (!cuda.compiled) {
    return missing(
      'cuda',
      'the addon was built without CUDA',
      'for a GPU: install the CUDA toolkit (nvcc 13), then npm run build again',
    )
  }
  const versions = `runtime ${cuda.runtimeVersion ?? 'unknown'}, driver ${cuda.driverVersion ?? 'none'}`
  if (!cuda.usable) {
    const tooOld = cuda.driverVersion !== null && Number(cuda.driverVersion) < Number(cuda.runtimeVersion)
    const todo =
      cuda.driverVersion === null
        ? 'for a GPU: install the NVIDIA driver; in a container, start it with the GPU (--gpus all)'
        : tooOld
          ? `for the GPU: update the NVIDIA driver to one for CUDA ${cuda.runtimeVersion} or newer`
          : 'for the GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES'
    return missing('cuda', `${cuda.status}${cuda.error ? ` (${cuda.error})` : ''}; ${versions}`, todo)
  }
  const yes = (value: boolean) => (value ? 'yes' : 'no')
  return ok('cuda', `${versions}; green contexts ${yes(cuda.greenContexts)}, tensor maps ${yes(cuda.tensorMaps)}`)
}

function deviceFindings({ cuda }: MachineInfo): Finding[] {
  return cuda.devices.map((gpu) => {
    const detail =
      `${gpu.name}: compute ${gpu.computeCapability}, ${gpu.multiprocessors} SMs, ${bytes(gpu.memoryBytes)}, ` +
      `L2 ${bytes(gpu.l2Bytes)}${gpu.memoryPools ? '' : ', no memory pools'}`
    if (Number(gpu.computeCapability) >= 8) return ok(gpu.device, detail)
    return missing(gpu.device, detail, 'use a GPU of compute capability 8.0 (Ampere) or newer, or --device cpu')
  })
}

function nvmlFinding({ nvml, cuda }: MachineInfo): Finding {
  if (nvml.available) return ok('nvml', `${nvml.detail}${nvml.library ? ` (${nvml.library})` : ''}`)
  const todo =
    cuda.devices.length > 0
      ? 'install libnvidia-ml.so.1 (it comes with the driver), or name it with NEXUS_NVML_PATH'
      : 'nothing, without an NVIDIA GPU'
  return missing('nvml', nvml.detail, todo)
}

function migFinding({ nvml }: MachineInfo): Finding {
  if (nvml.migModes.length === 0) return missing('mig', nvml.available ? 'no device' : 'not known without NVML', null)
  return ok('mig', nvml.migModes.map((mode, i) => `GPU ${i} ${mode}`).join(', '))
}

function energyFindings({ nvml, rapl, cuda }: MachineInfo): Finding[] {
  const gpu = nvml.energyCounter
    ? ok('energy gpu', "NVML's energy counter")
    : missing(
        'energy gpu',
        'no NVML energy counter',
        cuda.devices.length > 0 ? 'it needs NVML and a GPU since Volta' : null,
      )
  const cpu =
    rapl.domains.length > 0
      ? ok('energy cpu', `RAPL: ${rapl.domains.join(', ')}`)
      : missing(
          'energy cpu',
          rapl.detail,
          'to measure the CPU: let this user read /sys/class/powercap/*/energy_uj (only root may; most virtual machines have none)',
        )
  return [gpu, cpu]
}

/** @returns the exit code */
export function runDoctor(output: Output): number {
  const report = examine(systemInfo())
  const { style } = output
  const width = Math.max(...report.findings.map((finding) => finding.name.length))
  const marks = { ok: style.green('ok     '), missing: style.yellow('missing'), broken: style.red('broken ') }
  output.print(
    ...report.findings.flatMap((finding) => {
      const [first = '', ...more] = finding.detail.split('\n')
      const indent = ' '.repeat(width + 11)
      return [
        `${marks[finding.status]}  ${finding.name.padEnd(width)}  ${first}`,
        ...more.map((line) => `${indent}${line.trim()}`),
        ...(finding.todo === null ? [] : [`${indent}${style.cyan('→')} ${finding.todo}`]),
      ]
    }),
    '',
    report.usable
      ? style.green(`Usable. --device auto takes ${report.device}.`)
      : style.red('Not usable: see what is broken above.'),
  )
  output.document(report)
  return report.usable ? exitCode.ok : exitCode.unavailable
}
