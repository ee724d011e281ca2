/**
 * The live device as a description: what it can be cut into is asked of the native code; what a number of SMs can do is measured for the
 * H200 and proportional to the SMs for everything else, whose curves say how times compare and not how long they are.
 */
import { type DeviceName, type DeviceSpec, resolveDevice, systemInfo } from '@nexus/native'
import { type Curve, checkDevice, type DeviceDescription, h200 } from './device.js'
import { type PartitionFacts, partitionFacts } from './native.js'

/** What a unit does of a device that was not measured; 'cpu' is one virtual worker. */
const nominal = {
  cuda: { bandwidth: 4.65e12 / 132, rate: 790e12 / 132 },
  cpu: { bandwidth: 8e9, rate: 50e9 },
} as const

/** A curve for a part of the device that it was measured on: as much of everything. */
const scaled = (curve: Curve, part: number): Curve =>
  part === 1 ? curve : curve.map(({ sms, perSecond }) => ({ sms: sms * part, perSecond: perSecond * part }))

function nameOf(device: DeviceName): string {
  if (device === 'cpu') return 'CPU'
  const found = systemInfo().machine?.cuda.devices.find((each) => each.device === device)
  if (found === undefined) return device
  // A process that was given a MIG instance sees that instance as its device; drivers put it into the name or only into the UUID.
  return found.uuid.startsWith('MIG-') && !found.name.includes('MIG') ? `${found.name} MIG` : found.name
}

/**
 * The description of a device of this machine, for `SliceManager`. An H200, also a MIG instance of one, has the measured curves scaled by its
 * SMs; other devices have straight ones. On the CPU an SM is a virtual worker.
 * @param device - @default 'auto'
 * @throws TypeError when it is no device; UnsupportedError when it cannot be used; NativeLoadError
 */
export function describeDevice(device: DeviceSpec = 'auto'): DeviceDescription {
  const name = resolveDevice(device)
  return descriptionOf(nameOf(name), name === 'cpu' ? nominal.cpu : nominal.cuda, partitionFacts(name))
}

/** @internal */
export function descriptionOf(
  called: string,
  each: { readonly bandwidth: number; readonly rate: number },
  { units, granularity, minimum }: Pick<PartitionFacts, 'units' | 'granularity' | 'minimum'>,
): DeviceDescription {
  const measured = /\bH200\b/.test(called)
  const part = units / h200.sms
  return checkDevice('device', {
    name: called,
    sms: units,
    granularity: Math.min(granularity, units),
    minSms: Math.min(minimum, units),
    persistingL2Bytes: measured && h200.persistingL2Bytes !== null ? Math.floor(h200.persistingL2Bytes * part) : null,
    bandwidth: measured ? scaled(h200.bandwidth, part) : [{ sms: units, perSecond: each.bandwidth * units }],
    rate: measured ? scaled(h200.rate, part) : [{ sms: units, perSecond: each.rate * units }],
  })
}
