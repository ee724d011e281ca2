/**
 * A device as slices see it, as plain data: how many SMs, in which portions, and what a number of SMs can do. On the CPU an 'SM' is a
 * virtual worker.
 */
import { checkInteger, checkNumber, checkOptions, describe } from '@nexus/native'

/** One measurement: with this many SMs, this much a second. */
export interface CurvePoint {
  readonly sms: number
  readonly perSecond: number
}

/**
 * Measurements by ascending number of SMs. Between two points: the straight line; before the first: the line from 0; after the
 * last: its value, for what is saturated stays so.
 */
export type Curve = readonly CurvePoint[]

export interface DeviceDescription {
  readonly name: string
  /** All SMs, 1 to 65536. */
  readonly sms: number
  /** SMs come in portions of so many; one slice also holds the remainder of the division. */
  readonly granularity: number
  /** SMs of the smallest slice. */
  readonly minSms: number
  /** Bytes of the L2 cache that a persisting window may hold; `null` when there is none or it is not known. */
  readonly persistingL2Bytes: number | null
  /** Bytes a second that a slice reads alone, by its SMs. */
  readonly bandwidth: Curve
  /** Floating-point operations a second, by SMs. */
  readonly rate: Curve
}

/**
 * An NVIDIA H200 (compute 9.0) as measured: read bandwidth of green contexts by size; the rate of dense bf16 products, which is
 * proportional to the SMs.
 */
export const h200: DeviceDescription = {
  name: 'NVIDIA H200',
  sms: 132,
  granularity: 8,
  minSms: 8,
  persistingL2Bytes: 37.5 * 2 ** 20,
  bandwidth: [
    { sms: 8, perSecond: 1.27e12 },
    { sms: 16, perSecond: 2.53e12 },
    { sms: 24, perSecond: 3.74e12 },
    { sms: 40, perSecond: 4.21e12 },
    { sms: 48, perSecond: 4.64e12 },
    { sms: 132, perSecond: 4.65e12 },
  ],
  rate: [{ sms: 132, perSecond: 790e12 }],
}

/** What a number of SMs does, by interpolation (see {@link Curve}). */
export function interpolate(curve: Curve, sms: number): number {
  let before: CurvePoint = { sms: 0, perSecond: 0 }
  for (const point of curve) {
    if (sms <= point.sms) {
      const part = (sms - before.sms) / (point.sms - before.sms)
      return before.perSecond + part * (point.perSecond - before.perSecond)
    }
    before = point
  }
  return before.perSecond
}

/** The fewest SMs, in the device's granularity, that read 99 % of what all of them do. */
export function saturatingSms(device: DeviceDescription): number {
  const enough = 0.99 * interpolate(device.bandwidth, device.sms)
  let sms = roundUp(device.minSms, device.granularity)
  while (sms < device.sms && interpolate(device.bandwidth, sms) < enough) sms += device.granularity
  return Math.min(sms, device.sms)
}

/**
 * A bandwidth cap as a number of SMs in the device's granularity: the most that stay within it, and no more than saturate the memory.
 * At least the smallest slice: a cap below what that one reads cannot be held by SMs.
 */
export function smsForBandwidth(device: DeviceDescription, bytesPerSecond: number): number {
  checkNumber('bytesPerSecond', bytesPerSecond, 0)
  const most = saturatingSms(device)
  let sms = Math.min(roundUp(device.minSms, device.granularity), most)
  while (sms < most && interpolate(device.bandwidth, Math.min(sms + device.granularity, most)) <= bytesPerSecond) {
    sms = Math.min(sms + device.granularity, most)
  }
  return sms
}

/** @internal */
export function roundUp(value: number, granularity: number): number {
  return Math.ceil(value / granularity) * granularity
}

function checkCurve(name: string, curve: Curve): void {
  if (!Array.isArray(curve) || curve.length === 0) {
    throw new TypeError(`${name}: expected an array of at least one point, got ${describe(curve)}`)
  }
  let before = { sms: 0, perSecond: 0 }
  for (const [i, point] of curve.entries()) {
    checkOptions(`${name}[${i}]`, point, ['sms', 'perSecond'])
    checkNumber(`${name}[${i}].sms`, point.sms)
    checkNumber(`${name}[${i}].perSecond`, point.perSecond)
    if (!(point.sms > before.sms)) {
      throw new RangeError(`${name}[${i}].sms: expected more than ${before.sms}, got ${point.sms}`)
    }
    if (point.perSecond < before.perSecond || point.perSecond === 0) {
      throw new RangeError(
        `${name}[${i}].perSecond: expected at least ${before.perSecond} and not 0, got ${point.perSecond}`,
      )
    }
    before = point
  }
}

/** @throws TypeError or RangeError that names the field, what came and what was expected. */
export function checkDevice(name: string, device: DeviceDescription): DeviceDescription {
  if (typeof device !== 'object' || device === null) {
    throw new TypeError(`${name}: expected a description of a device, got ${describe(device)}`)
  }
  checkOptions(name, device, ['name', 'sms', 'granularity', 'minSms', 'persistingL2Bytes', 'bandwidth', 'rate'])
  if (typeof device.name !== 'string') {
    throw new TypeError(`${name}.name: expected a string, got ${describe(device.name)}`)
  }
  checkInteger(`${name}.sms`, device.sms, 1, 65536)
  checkInteger(`${name}.granularity`, device.granularity, 1, device.sms)
  checkInteger(`${name}.minSms`, device.minSms, 1, device.sms)
  if (roundUp(device.minSms, device.granularity) > device.sms) {
    throw new RangeError(`${name}.minSms: expected to fit into ${device.sms} SMs in portions of ${device.granularity}`)
  }
  if (device.persistingL2Bytes !== null) checkNumber(`${name}.persistingL2Bytes`, device.persistingL2Bytes, 0)
  checkCurve(`${name}.bandwidth`, device.bandwidth)
  checkCurve(`${name}.rate`, device.rate)
  return device
}
