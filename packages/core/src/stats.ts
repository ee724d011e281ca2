/**
 * What a layer reports: of one step, and over its life. Times are the device's own, between events in the stream; counts are copied
 * behind the step. Neither makes the data path wait.
 */
import type { DeviceName, DType } from '@nexus/native'
import type { RawStepStats } from './native.js'
import { noScheduling, type SchedulingStats } from './scheduling/stats.js'
import type { TuningInForce } from './tuning/in-force.js'

/** Device time of a step's phases, in milliseconds. A step by a graph is one launch: its phases are `null`, only the total is known. */
export interface PhaseTimes {
  /** Logits, choice, weights and buckets. */
  readonly routerMs: number | null
  readonly expertsMs: number | null
  /** The shared expert and its gate; 0 without one. */
  readonly sharedMs: number | null
  readonly combineMs: number | null
  readonly totalMs: number
}

/** What one `forward` did. */
export interface StepStats {
  readonly tokens: number
  /** Slots that each expert got; they sum to tokens·topK. */
  readonly counts: Int32Array
  readonly times: PhaseTimes
  /** Experts that got at least one token. */
  readonly activeExperts: number
  /** The busiest expert's count over the mean count: 1 is even. `null` for a step without tokens. */
  readonly loadImbalance: number | null
}

/** A layer's life so far, as plain data that survives `JSON.stringify`. */
export interface LayerStats extends SchedulingStats {
  readonly device: DeviceName
  readonly dtype: DType
  /** All steps, `enqueue` and `forward`, that were queued. */
  readonly steps: number
  readonly tokens: number
  /** Steps that became part of a graph of the caller's (`Graph.capture`): not among `steps`, and its launches are counted nowhere. */
  readonly recordedSteps: number
  /** Finished `forward` steps: those whose counts and times are known. */
  readonly measuredSteps: number
  readonly measuredTokens: number
  /** Of the measured steps; `null` before the first. Phases are means over the steps that had them, `null` where none had. */
  readonly times: { readonly mean: PhaseTimes; readonly last: PhaseTimes } | null
  /** Slots of each expert over the measured steps. */
  readonly expertCounts: readonly number[]
  /** Of `expertCounts`; `null` while they are all 0. */
  readonly loadImbalance: number | null
  /** Kernel variant of each linear layer for the last step's rows; empty before the first step and for the baseline. */
  readonly variants: { readonly experts: readonly string[]; readonly shared: readonly string[] }
  /** The measured choices among which `variants` were found, as of when the layer was made; `null` for the baseline. */
  readonly tuning: TuningInForce | null
  /** How the experts' weights lie: option `weightLayout` of a layer. */
  readonly weightLayout: 'rows' | 'panels'
  readonly weightBytes: number
  /** Scratch memory held now. */
  readonly workspaceBytes: number
}

/** max / mean, or `null` when nothing was counted. */
export function loadImbalance(counts: ArrayLike<number>): number | null {
  let sum = 0
  let max = 0
  for (let i = 0; i < counts.length; i++) {
    const count = counts[i] ?? 0
    sum += count
    max = Math.max(max, count)
  }
  return sum === 0 ? null : (max * counts.length) / sum
}

export function stepStats(tokens: number, raw: RawStepStats): StepStats {
  const { counts, totalMs } = raw
  // The addon says -1 for a phase that a step by a graph does not have.
  const phase = (ms: number): number | null => (ms < 0 ? null : ms)
  return {
    tokens,
    counts,
    times: {
      routerMs: phase(raw.routerMs),
      expertsMs: phase(raw.expertsMs),
      sharedMs: phase(raw.sharedMs),
      combineMs: phase(raw.combineMs),
      totalMs,
    },
    activeExperts: counts.reduce((active, count) => active + (count > 0 ? 1 : 0), 0),
    loadImbalance: loadImbalance(counts),
  }
}

const phases = ['routerMs', 'expertsMs', 'sharedMs', 'combineMs'] as const

/** Adds up the steps of one layer. */
export class StatsRecorder {
  #steps = 0
  #tokens = 0
  #recordedSteps = 0
  #measuredSteps = 0
  #measuredTokens = 0
  #lastTokens: number | null = null
  #last: PhaseTimes | null = null
  #phased = 0
  readonly #sums = { routerMs: 0, expertsMs: 0, sharedMs: 0, combineMs: 0, totalMs: 0 }
  readonly #counts: number[]

  constructor(numExperts: number) {
    this.#counts = new Array<number>(numExperts).fill(0)
  }

  /** Tokens of the last step queued or recorded, `null` before the first. */
  get lastTokens(): number | null {
    return this.#lastTokens
  }

  get tokens(): number {
    return this.#tokens
  }

  queued(tokens: number): void {
    this.#steps++
    this.#tokens += tokens
    this.#lastTokens = tokens
  }

  /** A step is part of a graph of the caller's. */
  recorded(tokens: number): void {
    this.#recordedSteps++
    this.#lastTokens = tokens
  }

  measured({ tokens, counts, times }: StepStats): void {
    this.#measuredSteps++
    this.#measuredTokens += tokens
    this.#last = times
    this.#sums.totalMs += times.totalMs
    if (times.routerMs !== null) this.#phased++
    for (const phase of phases) this.#sums[phase] += times[phase] ?? 0
    for (const [expert, count] of counts.entries()) this.#counts[expert] = (this.#counts[expert] ?? 0) + count
  }

  report(
    layer: Pick<
      LayerStats,
      'device' | 'dtype' | 'variants' | 'tuning' | 'weightLayout' | 'weightBytes' | 'workspaceBytes'
    > &
      Partial<SchedulingStats>,
  ): LayerStats {
    const n = this.#measuredSteps
    const s = this.#sums
    const phase = (sum: number): number | null => (this.#phased === 0 ? null : sum / this.#phased)
    const mean = {
      routerMs: phase(s.routerMs),
      expertsMs: phase(s.expertsMs),
      sharedMs: phase(s.sharedMs),
      combineMs: phase(s.combineMs),
      totalMs: s.totalMs / n,
    }
    return {
      ...noScheduling,
      ...layer,
      steps: this.#steps,
      tokens: this.#tokens,
      recordedSteps: this.#recordedSteps,
      measuredSteps: n,
      measuredTokens: this.#measuredTokens,
      times: this.#last === null ? null : { mean, last: { ...this.#last } },
      expertCounts: [...this.#counts],
      loadImbalance: loadImbalance(this.#counts),
    }
  }
}
