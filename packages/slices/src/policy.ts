/** What an allocation policy is: one pure function from a snapshot to a decision. */
import type { Forecast, Temperature } from '@nexus/profiler'
import type { CostModel, Placement } from './cost.js'

/** What a decision has to keep to. */
export interface Constraints {
  /** SMs to be shared out, all of them. */
  readonly sms: number
  /** Every slice's SMs are a multiple of this, but for one slice, which also holds the remainder. */
  readonly granularity: number
  /** SMs of the smallest slice. */
  readonly minSms: number
  /** Most slices; fewer when there are fewer experts. */
  readonly slices: number
  /** Steps for which sizes, once changed, stay; a decision that changes them sooner is not followed. */
  readonly dwellSteps: number
  /** Microseconds that a change of sizes costs the device. */
  readonly switchUs: number
}

/** How things are laid out now. */
export interface CurrentPlacement extends Placement {
  /** Step at which the sizes last changed. */
  readonly sinceStep: number
}

/** All that a policy knows: plain data, so that decisions can be recorded, tested and replayed without a GPU. */
export interface PolicySnapshot {
  readonly step: number
  /** Mean assignments per step in the last window, by expert. */
  readonly load: readonly number[]
  /** By expert. */
  readonly temperatures: readonly Temperature[]
  /** What the profiler expects of the next steps; `null` while it has nothing to say. */
  readonly forecast: Pick<Forecast, 'method' | 'counts' | 'score' | 'horizonSteps'> | null
  /** `null` before the first decision. */
  readonly current: CurrentPlacement | null
  /**
   * Recent busy time of each current slice (the median over some steps, so that an odd one does not count) over that of the busiest,
   * 0 to 1; `null` when it was not measured, or not for long enough in these sizes.
   */
  readonly utilization: readonly number[] | null
  readonly constraints: Constraints
  /** `null` when nothing was measured: the work of an expert is then its assignments. */
  readonly cost: CostModel | null
}

/** Slices by index, experts in them, and why. Slice 0 is the hottest. */
export interface Decision extends Placement {
  /** One sentence for people. */
  readonly reason: string
}

/**
 * A way to share a chip among experts. `decide` is pure: same snapshot, same decision, nothing changed, nothing kept; what it needs to
 * remember is in the snapshot. It has to give out all SMs within the constraints, and every expert one slice; `conformance` says
 * whether it does, and the manager refuses a decision that does not.
 */
export interface AllocationPolicy {
  readonly name: string
  decide(snapshot: PolicySnapshot): Decision
}
