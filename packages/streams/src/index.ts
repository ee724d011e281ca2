/**
 * Streams of a device, experts assigned to them, and schedules: several tenants in the slices of one plan, each on streams of its own.
 * @packageDocumentation
 */
export {
  type Arrangement,
  type ArrangementChoice,
  type ArrangementKind,
  type ArrangementTrial,
  type ChooseOptions,
  chooseArrangement,
  type TenantTrial,
} from './arrangement.js'
export { type AssignmentStrategy, assignments, makespan } from './assignment.js'
export {
  type AssignmentSituation,
  type AssignmentViolation,
  assignmentConformance,
  assignmentSituations,
} from './assignment-conformance.js'
export { assign, assignmentViolations } from './assignment-guard.js'
export { AssignmentError } from './errors.js'
export type { LaneUse } from './expert-lanes.js'
export { StreamPool, type StreamPoolOptions } from './pool.js'
export { Schedule, schedule, type TenantHandle } from './schedule.js'
export type {
  RunOptions,
  ScheduleOptions,
  ScheduleResult,
  ScheduleStats,
  TenantResult,
  TenantStats,
  TenantTrace,
} from './schedule-types.js'
export { TenantStep } from './step.js'
export {
  type ExpertsTenant,
  type FunctionTenant,
  type Tenant,
  type TenantObject,
  type TenantOptions,
  tenant,
  type WrappedTenant,
} from './tenant.js'
