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

/** The experts of each slice, ascending. */
function expertsOf(sliceOf: readonly number[], slices: number): number[][] {
  const count = new Int32Array(slices)
  for (let e = 0; e < sliceOf.length; e++) count[sliceOf[e] ?? 0] = (count[sliceOf[e] ?? 0] ?? 0) + 1
  const experts = Array.from(count, (n) => new Array<number>(n))
  for (let e = sliceOf.length - 1; e >= 0; e--) {
    const s = sliceOf[e] ?? 0
    const at = (count[s] ?? 0) - 1
    count[s] = at
    const own = experts[s]
    if (own) own[at] = e
  }
  return experts
}
