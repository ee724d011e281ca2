/** The document of `nexus-demo --json`: plain data, described field by field in docs/demo.md. */
import type { SystemInfo } from '@nexus/native'
import type { ProfilerSnapshot } from '@nexus/profiler'

export interface ProofRow {
  /** `null` where nothing was recorded: the first layer that has experts. */
  readonly layer: number | null
  readonly dtype: 'f32' | 'bf16'
  readonly tokens: number
  /** `null` where nothing was recorded. */
  readonly relativeError: number | null
  readonly maxAbsoluteError: number | null
  readonly tolerance: number | null
  /** Tokens whose experts differ from the recorded ones; `null` where nothing was recorded. */
  readonly differingTokens: number | null
  /** The output is finite, and the same bytes on a second run. */
  readonly repeatable: boolean
  readonly ok: boolean
}
export interface ProofReport {
  /** The folder's name. */
  readonly checkpoint: string
  /** `model_type` of its config.json. */
  readonly family: string | null
  readonly recorded: boolean
  readonly rows: readonly ProofRow[]
  readonly ok: boolean
}

export interface ComparisonRow {
  readonly batch: number
  /** Timed runs of each of the two. */
  readonly runs: number
  /** Medians in milliseconds from the call of `forward` until its promise settles. */
  readonly baselineMs: number
  readonly nexusMs: number
  /** baselineMs / nexusMs */
  readonly speedup: number
  readonly tokensPerSecond: number
  /** Between the two outputs. */
  readonly relativeError: number
  readonly ok: boolean
}
export interface ComparisonReport {
  readonly dtype: 'f32' | 'bf16'
  readonly inputDim: number
  readonly outputDim: number
  readonly hiddenDim: number
  readonly numExperts: number
  readonly topK: number
  readonly tolerance: number
  readonly rows: readonly ComparisonRow[]
  readonly ok: boolean
}

export interface DigitsReport {
  readonly images: number
  readonly numExperts: number
  readonly topK: number
  readonly load: ProfilerSnapshot
  /** For each expert, the digit that it was given most often and that digit's share of its assignments; `null` without any. */
  readonly favourites: readonly ({ readonly digit: number; readonly share: number } | null)[]
}

export interface DemoReport {
  readonly schema: 'nexus-demo/report/1'
  readonly version: string
  readonly ok: boolean
  readonly device: string
  readonly seed: number
  readonly elapsedMs: number
  readonly system: SystemInfo
  readonly proof: ProofReport
  readonly comparison: ComparisonReport
  readonly digits: DigitsReport
}
