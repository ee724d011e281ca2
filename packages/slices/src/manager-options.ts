/** What a slice manager is made with, and what it counts. */
import type { CostByLoad } from './cost.js'
import type { DeviceDescription } from './device.js'
import type { Enforcer } from './plan.js'
import type { AllocationPolicy } from './policy.js'
import type { SliceRequest } from './reservations.js'

/** Options of a {@link SliceManager}. */
export interface SliceManagerOptions {
  readonly device: DeviceDescription
  /** Experts of the layer, 0 to 65536. */
  readonly numExperts: number
  /** @default policies.adaptive() */
  readonly policy?: AllocationPolicy
  /**
   * Slices of the policy, at most.
   * @default 3 (hot, warm, cold)
   */
  readonly slices?: number
  /**
   * What experts' work costs; or by the assignments of a step, `(assignments) => CostModel`, which should give the same object for loads of one kind.
   * @default null (an expert's work is its assignments)
   */
  readonly cost?: CostByLoad | null
  /**
   * Steps for which sizes stay once they have changed.
   * @default 8
   */
  readonly dwellSteps?: number
  /**
   * Fewest SMs that a change of sizes has to move.
   * @default 0
   */
  readonly hysteresisSms?: number
  /**
   * Microseconds that a change of sizes costs the device.
   * @default 3
   */
  readonly switchUs?: number
  /**
   * Who holds the device to the layouts.
   * @default null (nobody: every budget says `none`)
   */
  readonly enforcer?: Enforcer | null
  /**
   * A slice reserved from the start by the name `aux`, for shared experts: as `allocate({ name: 'aux', ...aux })`, without a plan before it.
   * @default null
   */
  readonly aux?: Omit<SliceRequest, 'name' | 'evict'> | null
  /**
   * Layouts that stay built, at least 1; the one used longest ago goes first.
   * @default 32
   */
  readonly maxLayouts?: number
}

export const optionKeys = [
  'device',
  'numExperts',
  'policy',
  'slices',
  'cost',
  'dwellSteps',
  'hysteresisSms',
  'switchUs',
  'enforcer',
  'aux',
  'maxLayouts',
] as const satisfies readonly (keyof SliceManagerOptions)[]

/** What a manager has done since it was made. */
export interface SliceManagerStats {
  readonly plans: number
  /** Plans whose layout was another than the one before. */
  readonly switches: number
  /** Experts that changed slices. */
  readonly migrations: number
  readonly evictions: number
  /** Decisions that were not followed. */
  readonly kept: { readonly dwell: number; readonly hysteresis: number }
  /** Layouts built now. */
  readonly layouts: number
}
