/**
 * Slices that are asked for by name (the `aux` slice of shared experts, other tenants): who has how many SMs. Values, not state: each
 * change gives a new set, so that a change that cannot be followed through is simply dropped.
 */
import { checkInteger, checkNumber, checkOptions, describe } from '@nexus/native'
import { type DeviceDescription, interpolate, roundUp, smsForBandwidth } from './device.js'
import { SliceAllocationError } from './errors.js'

/** A slice that is asked for by name. `sms`, `bandwidthBytesPerSecond`, or both: then the smaller. */
export interface SliceRequest {
  /** Not empty, and not one that policies' slices have (`all`, `hot`, `warm`, `warm-1`, …, `cold`, `spare`). */
  readonly name: string
  /**
   * SMs; rounded up to the device's granularity.
   * @default what the bandwidth cap comes to
   */
  readonly sms?: number
  /**
   * A cap in bytes a second, turned into SMs by the device's curve.
   * @default none
   */
  readonly bandwidthBytesPerSecond?: number
  /**
   * Part of the persisting L2 cache, 0 to 1.
   * @default 0
   */
  readonly l2Share?: number
  /** @default 0 */
  readonly priority?: number
  /**
   * Whether slices of lower priority may be released to make room, the lowest first, and of equals the youngest.
   * @default false
   */
  readonly evict?: boolean
}

export interface Reservation {
  readonly name: string
  readonly requestedSms: number
  readonly sms: number
  readonly l2Share: number
  readonly bandwidthCap: number | null
  readonly priority: number
}

/**
 * The name by which the slice of a layer's shared experts is reserved: what runs beside all routed experts asks the plan for
 * a slice of this name, and runs in the step's own stream where there is none.
 */
export const auxSlice = 'aux'

const keys = ['name', 'sms', 'bandwidthBytesPerSecond', 'l2Share', 'priority', 'evict']
const taken = /^(all|hot|warm|warm-\d+|cold|spare)$/

/** A request as a reservation. */
export function reservation(device: DeviceDescription, request: SliceRequest): Reservation {
  if (typeof request !== 'object' || request === null) {
    throw new TypeError(`request: expected an object, got ${describe(request)}`)
  }
  checkOptions('request', request, keys)
  const { name, sms, bandwidthBytesPerSecond: cap } = request
  if (typeof name !== 'string') throw new TypeError(`request.name: expected a string, got ${describe(name)}`)
  if (name === '' || taken.test(name)) {
    throw new RangeError(`request.name: expected a name that no slice of a policy has, got ${describe(name)}`)
  }
  if (sms === undefined && cap === undefined) {
    throw new TypeError('request.sms: expected a number of SMs, or bandwidthBytesPerSecond, got neither')
  }
  const asked = sms === undefined ? Number.POSITIVE_INFINITY : checkInteger('request.sms', sms, 1)
  const allowed = cap === undefined ? Number.POSITIVE_INFINITY : smsForBandwidth(device, cap)
  const requestedSms = Math.min(asked, allowed)
  return {
    name,
    requestedSms,
    sms: granted(device, requestedSms),
    l2Share: checkNumber('request.l2Share', request.l2Share ?? 0, 0, 1),
    bandwidthCap: cap ?? null,
    priority: checkNumber('request.priority', request.priority ?? 0),
  }
}

/** In portions of the device, where one holds the remainder. @internal */
export function granted(device: DeviceDescription, sms: number): number {
  const rounded = roundUp(Math.max(sms, device.minSms), device.granularity)
  return sms <= device.sms ? Math.min(rounded, device.sms) : rounded
}

const total = (set: readonly Reservation[]) => set.reduce((sum, { sms }) => sum + sms, 0)

/** SMs that the policy's slices need at least. */
function leastPool(device: DeviceDescription, poolHasExperts: boolean): number {
  return poolHasExperts ? Math.min(device.sms, roundUp(device.minSms, device.granularity)) : 0
}

/** SMs that one more slice could have. */
export function freeSms(device: DeviceDescription, set: readonly Reservation[], poolHasExperts: boolean): number {
  const free = device.sms - total(set) - leastPool(device, poolHasExperts)
  // The remainder of the division is of use to the last slice alone.
  const usable = poolHasExperts || total(set) > 0 ? free - (free % device.granularity) : free
  return usable < device.minSms ? 0 : usable
}

/**
 * The set with one more, after what had to be evicted for it.
 * @param poolHasExperts - whether the policy has experts to run when these are the reservations: evicted slices leave theirs to it
 * @throws SliceAllocationError when it does not fit
 */
export function reserve(
  device: DeviceDescription,
  set: readonly Reservation[],
  wanted: Reservation,
  poolHasExperts: (left: readonly Reservation[]) => boolean,
  mayEvict: boolean,
): { readonly set: Reservation[]; readonly evicted: string[] } {
  const left = [...set]
  const evicted: string[] = []
  const fits = () => wanted.sms <= freeSms(device, left, poolHasExperts(left))
  while (!fits() && mayEvict) {
    let victim = -1
    for (const [i, { priority }] of left.entries()) {
      if (priority < wanted.priority && priority <= (left[victim]?.priority ?? Number.POSITIVE_INFINITY)) victim = i
    }
    if (victim < 0) break
    for (const { name } of left.splice(victim, 1)) evicted.push(name)
  }
  if (!fits()) {
    const free = freeSms(device, left, poolHasExperts(left))
    const how = mayEvict ? ', also after evicting what has a lower priority' : ''
    throw new SliceAllocationError(
      `slice '${wanted.name}': asked for ${wanted.requestedSms} SMs (${wanted.sms} in portions of ${device.granularity}), ` +
        `${free} of ${device.sms} are free${how}`,
      { requestedSms: wanted.requestedSms, freeSms: free },
    )
  }
  const l2 = left.reduce((sum, { l2Share }) => sum + l2Share, 0)
  if (wanted.l2Share > 0 && (l2 + wanted.l2Share > 1 + 1e-12 || device.persistingL2Bytes === null)) {
    const free = device.persistingL2Bytes === null ? 'the device has none' : `${(1 - l2).toFixed(3)} is free`
    throw new SliceAllocationError(
      `slice '${wanted.name}': asked for ${wanted.l2Share} of the persisting L2 cache, ${free}`,
    )
  }
  return { set: [...left, wanted], evicted }
}

/**
 * SMs of each reservation when the policy has no expert to use the rest: all of it goes to the one of highest priority that has no
 * cap, so that none lies idle; `spare` is what is left when there is none.
 */
export function grownSms(
  device: DeviceDescription,
  set: readonly Reservation[],
): { readonly sms: number[]; readonly spare: number } {
  const sms = set.map((each) => each.sms)
  const rest = device.sms - total(set)
  let heir = -1
  for (const [i, { bandwidthCap, priority }] of set.entries()) {
    if (bandwidthCap === null && priority > (set[heir]?.priority ?? Number.NEGATIVE_INFINITY)) heir = i
  }
  if (heir < 0) return { sms, spare: rest }
  sms[heir] = (sms[heir] ?? 0) + rest
  return { sms, spare: 0 }
}

/** Bytes a second that so many SMs of the device read. */
export const bandwidthOf = (device: DeviceDescription, sms: number) => interpolate(device.bandwidth, sms)
