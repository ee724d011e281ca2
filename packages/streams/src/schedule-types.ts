/** What a schedule is made with, and what it tells. */
import type { DeviceSpec, Stream } from '@nexus/native'
import type { EnforcementKind, SlicePartition } from '@nexus/slices'
import type { LaneUse } from './expert-lanes.js'
import type { StreamPool } from './pool.js'
import type { Tenant } from './tenant.js'

/** Options of `schedule`. */
export interface ScheduleOptions {
  /** 1 to 1024. */
  readonly tenants: readonly Tenant[]
  /**
   * The plan's layout, built: `enforcer.partition(plan)`. Held until the schedule is disposed of. Needed where the plan's budgets say
   * `hardware`.
   * @default none
   */
  readonly partition?: SlicePartition | null
  /**
   * Streams for tenants that have none of a slice; each gets its own.
   * @default new streams, as many as are needed
   */
  readonly pool?: StreamPool | null
  /** @default that of the partition, the pool or the first tensor or stream given, else 'auto' */
  readonly device?: DeviceSpec
  /**
   * When it fires, steps under way end with its reason and later ones are refused; what is queued on the device is done all the same.
   * @default none
   */
  readonly signal?: AbortSignal | null
  /**
   * Records which SMs compute for each lane of experts; see `Schedule.trace`.
   * @default false
   */
  readonly trace?: boolean
}

/** One step of all tenants. */
export interface RunOptions {
  /** Arguments behind the stream, by tenant, instead of the tenant's `args`. */
  readonly args?: Readonly<Record<string, readonly unknown[]>>
  /** The step starts after what this stream has queued. @default at once */
  readonly after?: Stream
  /**
   * This stream goes on when all tenants are done; on the CPU it fails with a tenant that fails, since what comes after would read what was not
   * written.
   * @default none
   */
  readonly into?: Stream
}

/** What a step was for one tenant. */
export interface TenantResult {
  readonly name: string
  /** `null`: none, or for experts those of the plan. */
  readonly slice: string | null
  /** Milliseconds of the device from the tenant's first operation to its last; `null` when it failed. */
  readonly ms: number | null
  /** Of experts in slices of their own, each lane's milliseconds; else empty. */
  readonly lanes: readonly { readonly slice: string; readonly ms: number }[]
  /** What it returned; of experts, the rows. */
  readonly value: unknown
  /** What went wrong; `null` when nothing did. */
  readonly error: unknown
}

export interface ScheduleResult {
  /** In the order they were given. */
  readonly tenants: readonly TenantResult[]
  /** Milliseconds of the device from the fork to the end of the last tenant; `null` when all failed. */
  readonly ms: number | null
}

/** A tenant's lanes, as they were really run. */
export interface TenantTrace {
  readonly name: string
  /** Empty for what is no experts tenant: only experts' kernels are traced. */
  readonly lanes: readonly LaneUse[]
}

export interface TenantStats {
  readonly name: string
  readonly slice: string | null
  readonly enforcement: EnforcementKind
  readonly enforcementReason: string
  /** SMs (CPU: virtual workers) that its stream may use. */
  readonly width: number
  /** Steps queued. */
  readonly steps: number
  readonly errors: number
  /** Of the last step of `run()` that was timed; `null` before. */
  readonly lastMs: number | null
}

export interface ScheduleStats {
  /** The plan's key. */
  readonly plan: string
  readonly runs: number
  /** Runs under way. */
  readonly active: number
  readonly tenants: readonly TenantStats[]
}
