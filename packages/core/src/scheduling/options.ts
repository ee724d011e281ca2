/**
 * The options that say how a layer's steps are scheduled, and what becomes of them. All are off by default, and combinations that make no
 * sense are refused by name: an option that would silently do nothing is worse than an error.
 */
import { EnergyMonitor } from '@nexus/energy'
import { checkInteger, checkOneOf, checkOptions, describe } from '@nexus/native'
import { type ExpertProfilerOptions, profilerOptionKeys } from '@nexus/profiler'
import { type AllocationPolicy, type CostByLoad, SliceManager } from '@nexus/slices'
import type { AssignmentStrategy } from '@nexus/streams'

/**
 * How the experts of a step are run; the output's bytes are the same with each.
 *
 *     fused        one grouped launch over the whole device
 *     tiered       a launch for each slice, on a stream that keeps to the slice's SMs, together
 *     streams      a launch for each stream, on plain streams, together
 *     cooperative  one grouped launch whose blocks are divided among the slices
 */
export type StrategyName = 'fused' | 'tiered' | 'streams' | 'cooperative'
export const strategyNames = ['fused', 'tiered', 'streams', 'cooperative'] as const

/** Options `slices` of a layer. */
export interface LayerSliceOptions {
  /** Portions that the device is divided into; a slice has whole ones. @default as many as the device allows */
  readonly total?: number
  /** Who decides. Not beside `manager`. @default policies.adaptive() */
  readonly policy?: AllocationPolicy
  /**
   * What an expert's work costs, such as one fitted by `calibrate` of the simulator; or by the assignments of a step, as `tileCost` of what
   * `calibrateTiles` found. @default by the layer's shape and the device
   */
  readonly cost?: CostByLoad
  /**
   * A manager of one's own, for as many experts; layers may share one. It is fed with the load of the first of them, and all follow its
   * plan. The layer does not dispose of it. @default one that the layer makes
   */
  readonly manager?: SliceManager
  /**
   * 'hardware': partitions of the device. 'cooperative': shares of one launch. @default 'auto': hardware where the device can be cut
   */
  readonly enforcement?: 'auto' | 'hardware' | 'cooperative'
  /** Steps from one decision to the next. @default 16, or as many more as keep decisions under 2 % of the host's time */
  readonly updateEverySteps?: number
  /** Slices that the policy may make, at most: 1 to 32. Not beside `manager`. @default 3 (hot, warm, cold) */
  readonly slices?: number
}

/** Options `streams` of a layer. */
export interface LayerStreamOptions {
  /** 1 to 32. @default 8 */
  readonly count?: number
  /** Which expert runs on which stream, by predicted cost. @default assignments.longestFirst() */
  readonly assignment?: AssignmentStrategy
}

/** Options `graphs` of a layer. */
export interface LayerGraphOptions {
  /** Uses of a token bucket before its step is recorded, at least 1. @default 3 */
  readonly captureAfter?: number
  /** Device memory that recorded steps may hold. @default 268435456 (256 MiB) */
  readonly memoryBudgetBytes?: number
  /** Steps of more tokens are launched one operation at a time. @default 16384 */
  readonly maxTokens?: number
}

/** How steps are scheduled and observed. */
export interface SchedulingOptions {
  /** @default 'fused'; 'auto' with `slices` or `streams`: a cost model chooses among what they allow */
  readonly strategy?: StrategyName | 'auto'
  /** Shares of the chip for hot, warm and cold experts. @default false; on with a strategy that needs them */
  readonly slices?: boolean | LayerSliceOptions
  /** Plain streams for the experts. @default false; on with strategy 'streams' */
  readonly streams?: boolean | LayerStreamOptions
  /** Record a step for each token bucket and replay it. @default false */
  readonly graphs?: boolean | LayerGraphOptions
  /**
   * Follow the load of the experts, by counts that the device writes. Slices and streams follow the load only with it.
   * @default false; true with `slices` or `streams`
   */
  readonly profiler?: boolean | Omit<ExpertProfilerOptions, 'numExperts'>
  /** Meter the device: `true` starts a monitor that the layer disposes of. @default false */
  readonly energy?: boolean | EnergyMonitor
  /** Record which SMs (virtual workers on the CPU) computed each lane's experts, for `layer.trace()`. @default false */
  readonly trace?: boolean
  /**
   * What a token's output may depend on besides the token. 'run-to-run': on the step's token bucket, by which kernels are chosen; never on
   * strategy, slices, streams, graphs or chance. 'batch-invariant': on nothing, so that it has the same bits alone as among any others, at
   * the price of kernels that suit few tokens or many less well. @default 'run-to-run'
   */
  readonly deterministic?: Determinism
}

/** Option `deterministic` of a layer. */
export type Determinism = 'run-to-run' | 'batch-invariant'
export const determinisms: readonly Determinism[] = ['run-to-run', 'batch-invariant']

export const schedulingKeys = [
  'strategy',
  'slices',
  'streams',
  'graphs',
  'profiler',
  'energy',
  'trace',
  'deterministic',
] as const satisfies readonly (keyof SchedulingOptions)[]

/** The checked options, every default filled in. */
export interface Scheduling {
  readonly strategy: StrategyName | 'auto'
  readonly slices: {
    readonly total: number | null
    readonly policy: AllocationPolicy | null
    readonly cost: CostByLoad | null
    readonly manager: SliceManager | null
    readonly enforcement: 'auto' | 'hardware' | 'cooperative'
    readonly count: number
  } | null
  readonly streams: { readonly count: number; readonly assignment: AssignmentStrategy | null } | null
  readonly graphs: Required<LayerGraphOptions> | null
  readonly profiler: Omit<ExpertProfilerOptions, 'numExperts'> | null
  readonly energy: true | EnergyMonitor | null
  readonly trace: boolean
  /** Steps from one decision to the next; `null`: the default. */
  readonly updateEverySteps: number | null
}

/** The object of an option that may be a flag too; `null` when it is off. */
function section<T extends object>(
  name: string,
  value: boolean | T | undefined,
  implied: boolean,
  keys: readonly string[],
) {
  const given = value ?? implied
  if (given === false) return null
  if (given === true) return {} as T
  if (typeof given !== 'object' || given === null) {
    throw new TypeError(`${name}: expected a boolean or an object of options, got ${describe(given)}`)
  }
  checkOptions(name, given, keys)
  return given
}

/**
 * @returns `null` when everything is off
 * @throws TypeError or RangeError naming the option
 */
export function resolveScheduling(options: SchedulingOptions): Scheduling | null {
  const { trace = false } = options
  checkOneOf('deterministic', options.deterministic ?? 'run-to-run', determinisms)
  const wanted = (value: unknown) => value !== undefined && value !== false
  const several = wanted(options.slices) || wanted(options.streams)
  const strategy = checkOneOf('strategy', options.strategy ?? (several ? 'auto' : 'fused'), ['auto', ...strategyNames])
  if (typeof trace !== 'boolean') throw new TypeError(`trace: expected a boolean, got ${describe(trace)}`)
  const sliced = strategy === 'tiered' || strategy === 'cooperative'
  const impliesSlices = sliced || (strategy === 'auto' && options.slices === undefined && !wanted(options.streams))
  const slices = resolveSlices(options, impliesSlices)
  const streams = resolveStreams(options, strategy === 'streams')
  const graphs = resolveGraphs(options)
  checkTogether(strategy, { slices, streams, trace })
  const lanes = slices !== null || streams !== null
  const profiler = section('profiler', options.profiler, lanes, profilerKeys)
  const energy = resolveEnergy(options)
  if (strategy === 'fused' && graphs === null && profiler === null && energy === null) return null
  return {
    strategy,
    slices: slices?.resolved ?? null,
    streams,
    graphs,
    profiler,
    energy,
    trace,
    updateEverySteps: slices?.updateEverySteps ?? null,
  }
}

/** Refuses what would silently do nothing. */
function checkTogether(
  strategy: Scheduling['strategy'],
  on: { readonly slices: object | null; readonly streams: object | null; readonly trace: boolean },
): void {
  const refuse = (option: string, why: string): never => {
    throw new TypeError(`${option}: ${why}`)
  }
  const sliced = strategy === 'tiered' || strategy === 'cooperative'
  if (sliced && on.slices === null) refuse('slices', `strategy '${strategy}' needs them, got false`)
  if (strategy === 'streams' && on.streams === null) refuse('streams', "strategy 'streams' needs them, got false")
  if (strategy === 'auto' && on.slices === null && on.streams === null) {
    refuse('strategy', "'auto' needs slices or streams to choose among, both are false")
  }
  if (on.slices !== null && (strategy === 'fused' || strategy === 'streams')) {
    refuse('slices', `strategy '${strategy}' has none; expected 'tiered', 'cooperative' or 'auto'`)
  }
  if (on.streams !== null && strategy !== 'streams' && strategy !== 'auto') {
    refuse('streams', `strategy '${strategy}' has none; expected 'streams' or 'auto'`)
  }
  if (on.trace && strategy === 'fused') refuse('trace', "strategy 'fused' has no lanes to be traced")
}

// The layer knows how many experts there are.
const profilerKeys = profilerOptionKeys.filter((key) => key !== 'numExperts')

function resolveSlices(options: SchedulingOptions, implied: boolean) {
  const keys = ['total', 'policy', 'cost', 'manager', 'enforcement', 'updateEverySteps', 'slices']
  const given = section<LayerSliceOptions>('slices', options.slices, implied, keys)
  if (given === null) return null
  const { total = null, policy = null, cost = null, manager = null, slices: count = 3, updateEverySteps = null } = given
  const enforcement = checkOneOf('slices.enforcement', given.enforcement ?? 'auto', ['auto', 'hardware', 'cooperative'])
  if (total !== null) checkInteger('slices.total', total, 1)
  if (policy !== null && typeof policy?.decide !== 'function') {
    throw new TypeError(`slices.policy: expected an AllocationPolicy, got ${describe(policy)}`)
  }
  if (cost !== null && typeof cost !== 'object' && typeof cost !== 'function')
    throw new TypeError(`slices.cost: expected a CostModel, or a function that returns one, got ${describe(cost)}`)
  if (manager !== null && !(manager instanceof SliceManager)) {
    throw new TypeError(`slices.manager: expected a SliceManager, got ${describe(manager)}`)
  }
  for (const name of ['total', 'policy', 'slices'] as const) {
    if (manager !== null && given[name] !== undefined) {
      throw new TypeError(`slices.${name}: the given slices.manager has its own, got ${describe(given[name])}`)
    }
  }
  checkInteger('slices.slices', count, 1, 32)
  if (updateEverySteps !== null) checkInteger('slices.updateEverySteps', updateEverySteps, 1)
  const strategy = options.strategy
  if (strategy === 'tiered' && enforcement === 'cooperative') {
    throw new TypeError("slices.enforcement: strategy 'tiered' needs partitions of the device, got 'cooperative'")
  }
  if (strategy === 'cooperative' && enforcement === 'hardware') {
    throw new TypeError("slices.enforcement: strategy 'cooperative' has no partitions, got 'hardware'")
  }
  return { resolved: { total, policy, cost, manager, enforcement, count }, updateEverySteps }
}

function resolveStreams(options: SchedulingOptions, implied: boolean): Scheduling['streams'] {
  const given = section<LayerStreamOptions>('streams', options.streams, implied, ['count', 'assignment'])
  if (given === null) return null
  const { count = 8, assignment = null } = given
  checkInteger('streams.count', count, 1, 32)
  if (assignment !== null && typeof assignment?.assign !== 'function') {
    throw new TypeError(`streams.assignment: expected an AssignmentStrategy, got ${describe(assignment)}`)
  }
  return { count, assignment }
}

function resolveGraphs(options: SchedulingOptions): Scheduling['graphs'] {
  const keys = ['captureAfter', 'memoryBudgetBytes', 'maxTokens']
  const given = section<LayerGraphOptions>('graphs', options.graphs, false, keys)
  if (given === null) return null
  const { captureAfter = 3, memoryBudgetBytes = 256 * 2 ** 20, maxTokens = 16384 } = given
  // One eager step sets up what recording must not: hence at least 1.
  checkInteger('graphs.captureAfter', captureAfter, 1)
  checkInteger('graphs.memoryBudgetBytes', memoryBudgetBytes, 0)
  checkInteger('graphs.maxTokens', maxTokens, 1, 2 ** 31 - 1)
  return { captureAfter, memoryBudgetBytes, maxTokens }
}

function resolveEnergy({ energy = false }: SchedulingOptions): Scheduling['energy'] {
  if (energy === false) return null
  if (energy === true || energy instanceof EnergyMonitor) return energy
  throw new TypeError(`energy: expected a boolean or an EnergyMonitor, got ${describe(energy)}`)
}
