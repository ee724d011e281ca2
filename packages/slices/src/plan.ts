/** What crosses from deciding to executing: a plan, as plain data, and who holds the device to it. */

/**
 * How a budget is held: `hardware`, by partitions of the device; `cooperative`, by kernels that keep to their share; `advisory`, a limit
 * that is asked for and not guaranteed; `none`, by nobody.
 */
export type EnforcementKind = 'hardware' | 'cooperative' | 'advisory' | 'none'

/** What an enforcer does for one slice. */
export interface Enforcement {
  readonly enforcement: EnforcementKind
  /** SMs that the slice really has. */
  readonly grantedSms: number
  /** Why it is so, for people. */
  readonly reason: string
}

/** Names and sizes: all that has to be built on a device before slices can be used. Which expert is where is not part of it. */
export interface Layout {
  /** The same for the same layout of the same device, in any process. */
  readonly key: string
  readonly slices: readonly { readonly name: string; readonly sms: number }[]
}

/** Holds a device to layouts. Building one may be slow; the manager has them built ahead and switches between them. */
export interface Enforcer {
  readonly name: string
  /**
   * Builds a layout, or finds that it is built already.
   * @returns what is done for each slice, in the layout's order
   */
  prepare(layout: Layout): readonly Enforcement[]
  /** Gives a layout back. */
  release(layout: Layout): void
}

/** A slice and all that is promised to it. */
export interface SliceBudget {
  readonly name: string
  /** `policy`: sized by the policy; `reserved`: asked for by name; `spare`: what nobody can use. */
  readonly kind: 'policy' | 'reserved' | 'spare'
  /** Experts that run there, by number, ascending. */
  readonly experts: readonly number[]
  /** SMs that were asked for, by the policy or the caller. */
  readonly requestedSms: number
  /** SMs that it has. */
  readonly grantedSms: number
  /** Part of the persisting L2 cache, 0 to 1. */
  readonly l2Share: number
  /** The same in bytes; `null` where the device does not say. */
  readonly l2Bytes: number | null
  /**
   * `advisory` where a share was asked for: the persisting part of the L2 cache belongs to the whole device, a window into it is a hint of
   * each launch, and no other slice is kept out. Shares are kept from adding up to more than there is, and that is all.
   */
  readonly l2Enforcement: 'advisory' | 'none'
  /** The cap that was asked for, in bytes a second; `null` without one. */
  readonly bandwidthCap: number | null
  /** Bytes a second that the granted SMs read by the device's curve. */
  readonly bandwidthBytesPerSecond: number
  /** Lower ones are evicted first. */
  readonly priority: number
  readonly enforcement: EnforcementKind
  /** Why the enforcement is what it is. */
  readonly enforcementReason: string
}

/** Who runs where, as plain data. */
export interface Plan {
  /** The key of its layout: plans with one key differ in nothing that has to be built. */
  readonly key: string
  /** The profiler's step that it was made at. */
  readonly step: number
  readonly device: string
  readonly policy: string
  /** The policy's reason. */
  readonly reason: string
  /** Why the policy was not followed; `null` when it was. */
  readonly keptBecause: 'dwell' | 'hysteresis' | null
  /** The policy's slices from hot to cold, then the reserved ones by name. All SMs of the device are in one. */
  readonly slices: readonly SliceBudget[]
  /** Slice of each expert, as an index of `slices`. */
  readonly sliceOf: readonly number[]
  /** Microseconds that the cost model gives the policy's slices under the last window's load; `null` without a model. */
  readonly predictedUs: number | null
}

const names: (readonly string[])[] = []

/** Names of n slices of a policy, from hot to cold. */
export function sliceNames(count: number): readonly string[] {
  const made = names[count] ?? namesOf(count)
  names[count] = made
  return made
}

function namesOf(count: number): readonly string[] {
  if (count === 1) return ['all']
  const middle = count === 3 ? ['warm'] : Array.from({ length: count - 2 }, (_, i) => `warm-${i + 1}`)
  return ['hot', ...middle, 'cold']
}

/** A layout by its slices. */
export function layoutOf(device: string, slices: readonly { readonly name: string; readonly sms: number }[]): Layout {
  let key = `${device}:`
  for (const { name, sms } of slices) key += ` ${name}=${sms}`
  return { key, slices }
}
