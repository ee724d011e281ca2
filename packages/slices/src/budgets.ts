/** The budgets of a plan: what was asked for, what is granted, and who holds the device to it. */
import type { DeviceDescription } from './device.js'
import type { Enforcement, Layout, SliceBudget } from './plan.js'
import { bandwidthOf, type Reservation } from './reservations.js'

/**
 * By slice of the layout.
 * @param ofPolicy - how many of them, the first, are the policy's
 * @param reserved - the reservations, which come next
 */
export function budgets(
  device: DeviceDescription,
  layout: Layout,
  ofPolicy: number,
  reserved: readonly Reservation[],
  enforcements: readonly Enforcement[],
  sliceOf: readonly number[],
): SliceBudget[] {
  const experts = expertsOf(sliceOf, layout.slices.length)
  return layout.slices.map(({ name, sms }, i): SliceBudget => {
    const asked = i < ofPolicy ? undefined : reserved[i - ofPolicy]
    const { enforcement, grantedSms, reason } = enforcements[i] ?? { enforcement: 'none', grantedSms: sms, reason: '' }
    const l2Share = asked?.l2Share ?? 0
    return {
      name,
      kind: i < ofPolicy ? 'policy' : asked ? 'reserved' : 'spare',
      experts: experts[i] ?? [],
      requestedSms: asked?.requestedSms ?? sms,
      grantedSms,
      l2Share,
      l2Bytes: device.persistingL2Bytes === null ? null : Math.floor(l2Share * device.persistingL2Bytes),
      l2Enforcement: l2Share > 0 ? 'advisory' : 'none',
      bandwidthCap: asked?.bandwidthCap ?? null,
      bandwidthBytesPerSecond: bandwidthOf(device, grantedSms),
      priority: asked?.priority ?? 0,
      enforcement,
      enforcementReason: reason,
    }
  })
}

/** By slice and half of the experts: how many there are; then, as they are listed, where the next one goes. */
let places = new Int32Array(0)

/**
 * The experts of each slice, ascending. Most are in one slice, and what is counted there is read again at once, which is what takes the time: so the
 * two halves of the experts are counted, and listed, beside each other.
 */
function expertsOf(sliceOf: readonly number[], slices: number): number[][] {
  if (places.length < 2 * slices) places = new Int32Array(2 * slices)
  const at = places
  at.fill(0)
  const half = sliceOf.length >> 1
  for (let e = 0; e < half; e++) {
    const s = sliceOf[e] ?? 0
    const t = slices + (sliceOf[half + e] ?? 0)
    at[s] = (at[s] ?? 0) + 1
    at[t] = (at[t] ?? 0) + 1
  }
  const odd = sliceOf.length === 2 * half ? -1 : (sliceOf[2 * half] ?? 0)
  const experts: number[][] = []
  for (let s = 0; s < slices; s++) {
    const first = at[s] ?? 0
    experts.push(new Array<number>(first + (at[slices + s] ?? 0) + (odd === s ? 1 : 0)))
    at[s] = 0
    at[slices + s] = first
  }
  for (let e = 0; e < half; e++) {
    const s = sliceOf[e] ?? 0
    const t = sliceOf[half + e] ?? 0
    const i = at[s] ?? 0
    const j = at[slices + t] ?? 0
    at[s] = i + 1
    at[slices + t] = j + 1
    const first = experts[s]
    const second = experts[t]
    if (first) first[i] = e
    if (second) second[j] = half + e
  }
  experts[odd]?.splice(-1, 1, 2 * half)
  return experts
}
