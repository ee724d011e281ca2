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

// Kept from one plan to the next: what slices have, one slice after the other, and where the next expert of each goes.
let listed = new Int32Array(0)
let next = new Int32Array(0)

/** The experts of each slice, ascending. */
function expertsOf(sliceOf: readonly number[], slices: number): number[][] {
  if (next.length < slices || listed.length < slices * sliceOf.length) {
    next = new Int32Array(slices)
    listed = new Int32Array(slices * sliceOf.length)
  }
  // Each slice has room for all of them here, so that one pass tells them apart.
  for (let s = 0; s < slices; s++) next[s] = s * sliceOf.length
  for (let e = 0; e < sliceOf.length; e++) {
    const s = sliceOf[e] ?? 0
    const at = next[s] ?? 0
    next[s] = at + 1
    listed[at] = e
  }
  const experts: number[][] = []
  for (let s = 0; s < slices; s++) {
    const first = s * sliceOf.length
    const count = (next[s] ?? 0) - first
    const own = new Array<number>(count)
    for (let i = 0; i < count; i++) own[i] = listed[first + i] ?? 0
    experts.push(own)
  }
  return experts
}
