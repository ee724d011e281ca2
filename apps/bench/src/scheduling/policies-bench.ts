/**
 * `bench policies`: every policy through every trace, in simulated time. Synthetic traces are drawn by seeds on which nothing was tuned; recorded ones are
 * the files and, for the intervals, the same layers and drifts recorded again by other seeds. All policies of a seed see one trace, so that ratios are paired.
 */
import { type AllocationPolicy, policies } from '@nexus/slices'
import {
  type Estimate,
  estimate,
  type SimulationResult,
  simulateAll,
  syntheticTrace,
  type Trace,
  type TraceKind,
  traceKinds,
} from '@nexus/slices/simulator'
import { type Environment, environment } from '../environment.js'
import { type TraceFile, traceOf } from '../recording/trace-file.js'
import { checkedFile } from './calibration.js'
import { type Clock, clocksOf, simulatedBy } from './clocks.js'
import { recordTrace } from './record.js'

export interface PoliciesOptions {
  /** A result file of `bench calibration`, by whose steps time goes. */
  readonly calibration: unknown
  /** Seeds of the synthetic traces. */
  readonly seeds: readonly number[]
  /** Recorded traces; none is fine. */
  readonly traces: readonly TraceFile[]
  /** Recordings of each of them: its own, and with the seeds after it. */
  readonly recordings: number
  readonly onProgress: (line: string) => void
}

/** One policy on one kind of trace; estimates are means over seeds with the half width of their 95 % interval. */
export interface PolicyRow {
  readonly trace: string
  readonly policy: string
  /** Milliseconds of the steps that count, with the prices of changes; and of the oracle. */
  readonly makespanMs: Estimate
  readonly oracleMs: Estimate
  /** Of the first run alone (the first seed, or the file itself): what tells whether a result is of this code. */
  readonly firstMs: number
  /** makespan / oracle - 1. */
  readonly regret: Estimate
  /** Makespan over that of `proportional`, and over that of the best policy of this trace (by the mean): both paired by seed. */
  readonly toProportional: Estimate
  readonly toBest: Estimate
  /** Per 1000 steps: changes of sizes, SMs and experts that change slices. */
  readonly switches: Estimate
  readonly movedSms: Estimate
  readonly migrations: Estimate
}

export interface PolicyTable {
  readonly title: string
  readonly recorded: boolean
  readonly numExperts: string
  /** Whose clock. */
  readonly shape: string
  readonly runs: number
  readonly rows: readonly PolicyRow[]
}

export interface PoliciesResult {
  readonly kind: 'policies'
  readonly what: string
  readonly environment: Environment
  readonly seeds: readonly number[]
  readonly recordings: number
  readonly clocks: readonly Clock[]
  readonly tables: readonly PolicyTable[]
  /** What each recorded trace is. */
  readonly traces: readonly {
    readonly name: string
    readonly layer: string
    readonly drift: string
    readonly device: string
  }[]
}

const list: readonly AllocationPolicy[] = [
  policies.static(),
  policies.dynamic(),
  policies.proportional(),
  policies.adaptive(),
]

const some: readonly TraceKind[] = ['stationary', 'periodic', 'gradual', 'flash-crowd']

/** Loads on both sides of the roofline; shapes that were measured, with their own numbers of experts. */
const synthetic = [
  {
    title: '64 experts, 32768 assignments a step: bound by arithmetic',
    shape: 'olmoe-1b-7b',
    kinds: traceKinds,
    numExperts: 64,
    assignments: 32768,
  },
  {
    title: '128 experts, 32768 assignments a step: hot experts bound by arithmetic, cold ones by memory',
    shape: 'qwen3-30b-a3b',
    kinds: some,
    numExperts: 128,
    assignments: 32768,
  },
  {
    title: '128 experts, 8192 assignments a step: bound by memory',
    shape: 'qwen3-30b-a3b',
    kinds: some,
    numExperts: 128,
    assignments: 8192,
  },
] as const
/** Recorded steps are timed as this shape's. */
const recordedShape = 'qwen3-30b-a3b'

// A turn of the event loop, in which a signal is heard.
const breathe = () => new Promise<void>((resolve) => setImmediate(resolve))

export async function policiesBench(options: PoliciesOptions): Promise<PoliciesResult> {
  const { calibration, seeds, traces, recordings, onProgress } = options
  const clocks = clocksOf(checkedFile(calibration), [
    ...new Set([...synthetic.map(({ shape }) => shape), recordedShape]),
  ])
  const by = (shape: string) => simulatedBy(clockOf(clocks, shape))
  const tables: PolicyTable[] = []
  for (const { title, shape, kinds, numExperts, assignments } of synthetic) {
    const time = by(shape)
    const rows: PolicyRow[] = []
    for (const kind of kinds) {
      const runs: SimulationResult[][] = []
      for (const seed of seeds) {
        runs.push(simulateAll(list, syntheticTrace({ kind, seed, numExperts, assignments }), time))
        await breathe()
      }
      rows.push(...rowsOf(kind, runs))
      onProgress(`${numExperts} experts, ${assignments} assignments, ${kind}: ${summary(rows)}`)
    }
    tables.push({ title, recorded: false, numExperts: String(numExperts), shape, runs: seeds.length, rows })
  }
  if (traces.length > 0) {
    const time = by(recordedShape)
    const rows: PolicyRow[] = []
    for (const file of traces) {
      const runs: SimulationResult[][] = []
      for (let again = 0; again < recordings; again++) {
        runs.push(simulateAll(list, await recording(file, again), time))
        await breathe()
      }
      rows.push(...rowsOf(file.name, runs))
      onProgress(`${file.name}: ${summary(rows)}`)
    }
    const experts = [...new Set(traces.map(({ options: { experts } }) => experts))].sort((a, b) => a - b)
    tables.push({
      title: 'Recorded from layers',
      recorded: true,
      numExperts: experts.join(', '),
      shape: recordedShape,
      runs: recordings,
      rows,
    })
  }
  return {
    kind: 'policies',
    what:
      `policies through routing traces, in time simulated by measured steps (${clocks[0]?.device ?? 'none'}), in three slices, decisions every 8 ` +
      'steps, the first 256 steps only profiled; the oracle arranges each step anew, knowing its counts, and pays for no change',
    environment: environment('cpu'),
    seeds,
    recordings,
    clocks,
    tables,
    traces: traces.map(({ name, layer, drift, device }) => ({ name, layer, drift, device })),
  }
}

export function clockOf(clocks: readonly Clock[], shape: string): Clock {
  const clock = clocks.find((each) => each.shape === shape)
  if (!clock) throw new RangeError(`no clock of ${shape}`)
  return clock
}

/** The file's counts, and then the same layer and drift by other seeds. */
async function recording(file: TraceFile, again: number): Promise<Trace> {
  if (again === 0) return traceOf(file)
  const seed = file.options.seed + again
  const steps = file.counts.length
  return traceOf(await recordTrace({ ...file.options, seed, steps, device: 'cpu', onProgress: () => {} }))
}

/** @param runs by seed, then by policy */
export function rowsOf(trace: string, runs: readonly (readonly SimulationResult[])[]): PolicyRow[] {
  const of = (policy: number, value: (result: SimulationResult) => number) =>
    runs.map((run) => {
      const result = run[policy]
      return result === undefined ? Number.NaN : value(result)
    })
  const makespans = list.map((_, p) => of(p, (result) => result.makespanUs))
  const means = makespans.map((values) => estimate(values).mean)
  const best = makespans[means.indexOf(Math.min(...means))] ?? []
  const proportional = makespans[list.findIndex(({ name }) => name === 'proportional')] ?? []
  return list.map(({ name }, p) => {
    const perThousand = (value: (result: SimulationResult) => number) =>
      estimate(of(p, (result) => (1000 * value(result)) / Math.max(1, result.steps)))
    const ratio = (to: readonly number[]) => estimate((makespans[p] ?? []).map((us, i) => us / (to[i] ?? Number.NaN)))
    return {
      trace,
      policy: name,
      makespanMs: estimate(of(p, (result) => result.makespanUs / 1e3)),
      firstMs: (makespans[p]?.[0] ?? Number.NaN) / 1e3,
      oracleMs: estimate(of(p, (result) => (result.oracleUs ?? Number.NaN) / 1e3)),
      regret: estimate(of(p, (result) => result.regret ?? Number.NaN)),
      toProportional: ratio(proportional),
      toBest: ratio(best),
      switches: perThousand((result) => result.switches),
      movedSms: perThousand((result) => result.movedSms),
      migrations: perThousand((result) => result.migrations),
    }
  })
}

const summary = (rows: readonly PolicyRow[]) =>
  rows
    .slice(-list.length)
    .map(({ policy, regret }) => `${policy} ${regret.mean < 0 ? '' : '+'}${(100 * regret.mean).toFixed(1)} %`)
    .join(', ')
