/**
 * Replays a trace through a policy, without a GPU: a real profiler records each step, the policy decides every few steps from what
 * the profiler knows by then, the gate holds it to the dwell, and the cost model (or a clock of its own) says how long the step took with the
 * counts that really came. Beside it an oracle arranges every step anew by the same arithmetic, knowing its counts, and pays for no change.
 */
import { checkInteger, checkNumber, checkOptions } from '@nexus/native'
import { ExpertProfiler, type ExpertProfilerOptions } from '@nexus/profiler'
import { arrange } from '../arrange.js'
import {
  type CostByLoad,
  type CostModel,
  costOfLoad,
  gatedExpertCost,
  type Placement,
  type StepPrediction,
} from '../cost.js'
import { checkDevice, type DeviceDescription, h200 } from '../device.js'
import { gate } from '../gate.js'
import { decide } from '../guard.js'
import type { AllocationPolicy, Constraints, CurrentPlacement, PolicySnapshot } from '../policy.js'
import { predictStep } from '../predict.js'
import type { TileModel } from '../tile-model.js'
import { predictTiles } from './tiles.js'
import type { Trace } from './traces.js'

/** Options of {@link simulate}. */
export interface SimulateOptions {
  /** @default h200 */
  readonly device?: DeviceDescription
  /**
   * One for all steps, or by the assignments of a step (a decision: of the mean step that the profiler knows).
   * @default that of gated experts 2048 × 768 (Qwen3-30B-A3B) on the device
   */
  readonly cost?: CostByLoad
  /**
   * What says how long steps take, where that is not the cost model by which policies and the oracle arrange them: steps tile by tile. One
   * for all steps, or by the assignments of a step.
   * @default the cost model
   */
  readonly clock?: TileModel | ((assignments: number) => TileModel)
  /**
   * Slices, at most.
   * @default 3
   */
  readonly slices?: number
  /**
   * Steps from one decision to the next.
   * @default 8
   */
  readonly intervalSteps?: number
  /**
   * Steps for which sizes stay once they have changed.
   * @default 16
   */
  readonly dwellSteps?: number
  /**
   * Steps at the start that are profiled only: the first decision comes after them, and they count for nobody.
   * @default 256
   */
  readonly warmupSteps?: number
  /**
   * Microseconds that a change of sizes costs.
   * @default 3
   */
  readonly switchUs?: number
  /**
   * Microseconds that an expert's move costs.
   * @default 0
   */
  readonly migrateUs?: number
  /**
   * Whether the oracle runs too; without, its figures are `null`.
   * @default true
   */
  readonly oracle?: boolean
  /** Options of the profiler. */
  readonly profiler?: Omit<ExpertProfilerOptions, 'numExperts'>
}

const optionKeys = [
  'device',
  'cost',
  'clock',
  'slices',
  'intervalSteps',
  'dwellSteps',
  'warmupSteps',
  'switchUs',
  'migrateUs',
  'oracle',
  'profiler',
] as const satisfies readonly (keyof SimulateOptions)[]

/** What came of one policy on one trace. */
export interface SimulationResult {
  readonly policy: string
  readonly trace: string
  /** Steps that count. */
  readonly steps: number
  /** Sum of the steps' times and the prices of changes, in microseconds. */
  readonly makespanUs: number
  /** The oracle's sum; `null` when it did not run. */
  readonly oracleUs: number | null
  /** makespan / oracle - 1; `null` when it did not run. */
  readonly regret: number | null
  /** Changes of sizes. */
  readonly switches: number
  /** SMs that changed slices, over all changes. */
  readonly movedSms: number
  /** Experts that changed slices, over all decisions. */
  readonly migrations: number
}

/** One policy on one trace; {@link simulateAll} is cheaper for several policies. */
export function simulate(policy: AllocationPolicy, trace: Trace, options?: SimulateOptions): SimulationResult {
  const [result] = simulateAll([policy], trace, options)
  if (!result) throw new RangeError('no result')
  return result
}

/**
 * Several policies on one trace. They see the same profiler: what is recorded does not depend on where experts ran.
 * @throws TypeError or RangeError that names the option; SliceAllocationError when a policy throws or decides what cannot be done
 */
export function simulateAll(
  list: readonly AllocationPolicy[],
  trace: Trace,
  options?: SimulateOptions,
): SimulationResult[] {
  checkOptions('options', options, optionKeys)
  const device = checkDevice('options.device', options?.device ?? h200)
  const given = options?.cost ?? gatedExpertCost(device, { inputDim: 2048, hiddenDim: 768 })
  const costOf = (load: ArrayLike<number>) => costOfLoad(given, load)
  const clock = options?.clock
  const timed: Timer = (counts, placement, cost) => {
    if (clock === undefined) return predictStep(cost, counts, placement)
    return predictTiles(typeof clock === 'function' ? clock(sum(counts)) : clock, counts, placement)
  }
  const interval = checkInteger('options.intervalSteps', options?.intervalSteps ?? 8, 1)
  const warmup = checkInteger('options.warmupSteps', options?.warmupSteps ?? 256, 0)
  const migrateUs = checkNumber('options.migrateUs', options?.migrateUs ?? 0, 0)
  const withOracle = options?.oracle ?? true
  const constraints: Constraints = {
    sms: device.sms,
    granularity: device.granularity,
    minSms: device.minSms,
    slices: checkInteger('options.slices', options?.slices ?? 3, 1),
    dwellSteps: checkInteger('options.dwellSteps', options?.dwellSteps ?? 16, 0),
    switchUs: checkNumber('options.switchUs', options?.switchUs ?? 3, 0),
  }
  const profiler = new ExpertProfiler({ ...options?.profiler, numExperts: trace.numExperts })
  const runs = list.map((policy) => new Run(policy, constraints, migrateUs, timed))
  let oracleUs = 0
  for (const [step, counts] of trace.counts.entries()) {
    if (step >= warmup) {
      if ((step - warmup) % interval === 0) {
        const { experts, windowSteps, forecast } = profiler.snapshot()
        const load = experts.map((expert) => expert.count / Math.max(1, windowSteps))
        const known = {
          step,
          load,
          temperatures: profiler.temperatures(),
          forecast,
          constraints,
          cost: costOf(load),
        }
        for (const run of runs) run.decide(known)
      }
      const cost = costOf(counts)
      for (const run of runs) run.step(counts, cost)
      if (withOracle) {
        const arranged = arrange(counts, constraints, cost)
        oracleUs += clock === undefined ? arranged.predictedUs : timed(counts, arranged, cost).stepUs
      }
    }
    profiler.record({ counts })
  }
  const steps = Math.max(0, trace.counts.length - warmup)
  return runs.map((run) => run.result(trace.name, steps, withOracle ? oracleUs : null))
}

function sum(values: ArrayLike<number>): number {
  let total = 0
  for (let i = 0; i < values.length; i++) total += values[i] ?? 0
  return total
}

/** Steps whose busy times make the utilization, and the fewest that do. */
const busySteps = 32
const leastBusySteps = 8

/**
 * Busy time of each slice over that of the busiest, by the median of the steps, which a few odd ones do not move; `null` after too few.
 * @param steps - busy times by step, then by slice
 */
export function utilizationOf(steps: readonly (readonly number[])[]): number[] | null {
  const [first] = steps
  if (!first || steps.length < leastBusySteps) return null
  const medians = first.map((_, s) => {
    const sorted = Float64Array.from(steps, (busy) => busy[s] ?? 0).sort()
    return ((sorted[(sorted.length - 1) >> 1] ?? 0) + (sorted[sorted.length >> 1] ?? 0)) / 2
  })
  const busiest = Math.max(...medians)
  return busiest > 0 ? medians.map((busy) => busy / busiest) : null
}

type Timer = (counts: ArrayLike<number>, placement: Placement, cost: CostModel) => StepPrediction

class Run {
  readonly #policy: AllocationPolicy
  readonly #constraints: Constraints
  readonly #migrateUs: number
  readonly #timed: Timer
  #current: CurrentPlacement | null = null
  /** Busy times of the last steps in these sizes. */
  #busy: (readonly number[])[] = []
  #makespanUs = 0
  #switches = 0
  #movedSms = 0
  #migrations = 0

  constructor(policy: AllocationPolicy, constraints: Constraints, migrateUs: number, timed: Timer) {
    this.#policy = policy
    this.#constraints = constraints
    this.#migrateUs = migrateUs
    this.#timed = timed
  }

  decide(known: Omit<PolicySnapshot, 'current' | 'utilization'>): void {
    const decision = decide(this.#policy, {
      ...known,
      current: this.#current,
      utilization: utilizationOf(this.#busy),
    })
    const before = this.#current
    const { sms, sliceOf, movedSms } = gate(before, decision, known.step, {
      dwellSteps: this.#constraints.dwellSteps,
      hysteresisSms: 0,
    })
    if (movedSms > 0) this.#busy = []
    let moved = 0
    if (before !== null) for (const [e, s] of sliceOf.entries()) if (before.sliceOf[e] !== s) moved++
    this.#migrations += moved
    this.#makespanUs += moved * this.#migrateUs
    if (movedSms > 0) {
      this.#switches++
      this.#movedSms += movedSms
      this.#makespanUs += this.#constraints.switchUs
    }
    this.#current = { sms, sliceOf, sinceStep: before === null || movedSms > 0 ? known.step : before.sinceStep }
  }

  step(counts: ArrayLike<number>, cost: CostModel): void {
    if (this.#current === null) return
    const { stepUs, sliceUs } = this.#timed(counts, this.#current, cost)
    this.#makespanUs += stepUs
    this.#busy.push(sliceUs)
    if (this.#busy.length > busySteps) this.#busy.shift()
  }

  result(trace: string, steps: number, oracleUs: number | null): SimulationResult {
    return {
      policy: this.#policy.name,
      trace,
      steps,
      makespanUs: this.#makespanUs,
      oracleUs,
      regret: oracleUs === null || oracleUs === 0 ? null : this.#makespanUs / oracleUs - 1,
      switches: this.#switches,
      movedSms: this.#movedSms,
      migrations: this.#migrations,
    }
  }
}
