/** Devices by name. */
import { call } from './call.js'
import { UnsupportedError } from './errors.js'
import { describe } from './options.js'

/** `'auto'`: `cuda:0` where CUDA can be used, else the CPU. `'cuda'` is `cuda:0`. */
export type DeviceSpec = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`
/** A device that is there. */
export type DeviceName = 'cpu' | `cuda:${number}`

interface CudaState {
  readonly devices: number
  readonly status: string
}

let known: CudaState | null = null

/** Devices do not come and go while a process runs, and asking costs milliseconds. */
function cudaState(): CudaState {
  if (known === null) {
    const info = call((b) => b.native.systemInfo())
    known = { devices: info.cudaStatus === 'ok' ? info.devices.length : 0, status: info.cudaStatus }
  }
  return known
}

const deviceNumber = (spec: string): number | null => {
  const match = /^cuda:(0|[1-9]\d{0,3})$/.exec(spec)
  return match === null ? null : Number(match[1])
}

/**
 * The device that a spec means on this machine.
 * @throws TypeError when it is no spec; UnsupportedError, with the reason, when CUDA was asked for and cannot be used;
 * NativeLoadError when there is no addon
 */
export function resolveDevice(spec: DeviceSpec): DeviceName {
  if (spec === 'cpu') return 'cpu'
  const number = spec === 'auto' || spec === 'cuda' ? 0 : typeof spec === 'string' ? deviceNumber(spec) : null
  if (number === null) {
    throw new TypeError(`device: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got ${describe(spec)}`)
  }
  const { devices, status } = cudaState()
  if (number < devices) return `cuda:${number}`
  if (spec === 'auto') return 'cpu'
  const reason = devices === 0 ? status : `this machine has ${devices}, the last is cuda:${devices - 1}`
  throw new UnsupportedError(`device: '${spec}' cannot be used: ${reason}`)
}

/** The number by which the addon knows a device: -1 for the CPU. */
export function deviceIndex(name: DeviceName): number {
  if (name === 'cpu') return -1
  const number = deviceNumber(name)
  if (number === null) throw new TypeError(`device: expected 'cpu' or 'cuda:<number>', got ${describe(name)}`)
  return number
}
