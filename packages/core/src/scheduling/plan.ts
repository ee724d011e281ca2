/** What a layer does with its steps, as plain data, and the ways there are. */
import { auxSlice, type Plan } from '@nexus/slices'
import { type AssignmentStrategy, assign, type StreamPool } from '@nexus/streams'
import type { Candidate } from './choice.js'
import { fusedWanted, type Wanted } from './exec.js'
import type { StrategyName } from './options.js'
import { layoutOf } from './slicing.js'

/** How a layer's steps are run from now on. */
export interface StepPlan {
  readonly strategy: StrategyName
  /** Why, in one sentence. */
  readonly reason: string
  /** The layer's step that it was decided after. */
  readonly step: number
  /** What could have been run, with its predicted time. */
  readonly candidates: readonly Candidate[]
  /** The slices of the chip; `null` without. They are in use with 'tiered' and 'cooperative'. */
  readonly slices: Plan | null
  /** The streams; `null` without. They are in use with 'streams'. */
  readonly streams: {
    readonly count: number
    /** Name of the assignment strategy. */
    readonly assignment: string
    /** Stream of each expert. */
    readonly streamOf: readonly number[]
  } | null
}

/** The plan of a layer without any scheduling. */
export const plainPlan: StepPlan = {
  strategy: 'fused',
  reason: 'fused: scheduling is off, one grouped launch over the whole device',
  step: 0,
  candidates: [],
  slices: null,
  streams: null,
}

/** A way that could be taken: what it wants, and how the cost model sees it. */
export interface Way {
  readonly wanted: Wanted
  /** SMs by lane, for the prediction; the whole device's for 'fused'. */
  readonly sms: readonly number[]
}

export const fusedWay = (sms: number): Way => ({ wanted: fusedWanted, sms: [sms] })

/** The experts of a plan in its slices: a lane for each slice that has experts or is the policy's. */
function lanesOf(plan: Plan) {
  const used = plan.sliceOf.reduce((most, s) => Math.max(most, s + 1), 1)
  const lanes = plan.slices.slice(0, Math.max(used, plan.slices.filter(({ kind }) => kind === 'policy').length))
  const laneNames = lanes.map(({ name }) => name)
  return { laneOf: plan.sliceOf, laneNames, sms: lanes.map(({ grantedSms }) => grantedSms) }
}

export function tieredWay(plan: Plan, hasShared: boolean): Way {
  const { laneOf, laneNames, sms } = lanesOf(plan)
  const aux = plan.slices.some(({ name }) => name === auxSlice)
  return {
    sms,
    wanted: {
      strategy: 'tiered',
      key: `tiered ${laneNames.length} of ${plan.key}`,
      laneOf,
      laneNames,
      shares: sms,
      layout: layoutOf(plan),
      pool: null,
      shared: hasShared && aux ? auxSlice : null,
    },
  }
}

export function cooperativeWay(plan: Plan): Way {
  const { laneOf, laneNames, sms } = lanesOf(plan)
  return {
    sms,
    wanted: {
      strategy: 'cooperative',
      key: `cooperative ${laneNames.length}`,
      laneOf,
      laneNames,
      shares: sms,
      layout: null,
      pool: null,
      shared: null,
    },
  }
}

/** Streams that experts are assigned to. */
export interface StreamSite {
  readonly pool: StreamPool
  readonly assignment: AssignmentStrategy
  /** Lanes; the pool has one stream more where there is a shared expert. */
  readonly count: number
}

/** @throws AssignmentError when the strategy throws, or assigns what cannot be */
export function streamsWay({ pool, assignment, count }: StreamSite, costs: readonly number[], sms: number): Way {
  return {
    // Streams share the device: to first order each has its part of it.
    sms: new Array<number>(count).fill(sms / count),
    wanted: {
      strategy: 'streams',
      key: `streams ${count}`,
      laneOf: assign(assignment, costs, count),
      laneNames: Array.from({ length: count }, (_, i) => `stream ${i}`),
      shares: [],
      layout: null,
      pool,
      shared: pool.size > count ? count : null,
    },
  }
}
