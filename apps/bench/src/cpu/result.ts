/** What `bench cpu` measures, and the aims that its figures are held to. */
import type { Environment } from '../environment.js'
import type { Faster } from './turns.js'

/** One peer beside ours: `faster` is its time over ours, above 1 where ours is faster. */
export interface PeerTimes {
  readonly us: number
  readonly minUs: number
  readonly faster: Faster
  /** Of its output to ours. */
  readonly difference: number
}

/** The layer from (x, router logits) to y. */
export interface CpuLayerRow {
  readonly shape: string
  readonly tokens: number
  /** Mean over the inputs. */
  readonly expertsHit: number
  /** Microseconds of a call, calls queued behind one another. */
  readonly nexusUs: number
  readonly nexusMinUs: number
  /** Of a call whose result is waited for before the next one. */
  readonly alone: { readonly us: number; readonly minUs: number }
  readonly peers: Readonly<Record<string, PeerTimes>>
  /** Peers that ran and failed, with their words. */
  readonly failed: Readonly<Record<string, string>>
  /** The smallest ratio to a peer, of medians or of fastest rounds; `null` without peers. */
  readonly fasterThanBest: number | null
  readonly aim: number
  /** The same layer with bf16 weights and tokens. */
  readonly bf16: {
    readonly us: number
    readonly faster: Faster
    /** Of its output to that in f32. */
    readonly difference: number
    /** Weights in bf16 that the inputs touch, all of them together. */
    readonly touchedBytes: number
    /** For a single token and weights beyond the last-level cache; else `null`. */
    readonly aim: number | null
  }
}

/** The experts' two products: ours with gather and activation, OpenBLAS's on rows that lie sorted already, without either. */
export interface CpuGemmRow {
  readonly shape: string
  readonly tokens: number
  readonly library: string
  readonly nexusUs: number
  readonly nexusGflops: number
  readonly libraryUs: number
  readonly libraryGflops: number
  /** Our rate over its. */
  readonly ratio: Faster
  readonly aim: number
}

export interface CpuResult {
  readonly kind: 'cpu'
  readonly what: string
  readonly environment: Environment & {
    readonly isa: string
    readonly lastLevelCacheBytes: number | null
    readonly torch: string | null
    readonly torchCapability: string | null
    readonly blas: Readonly<Record<string, string>>
    /** Runnable processes per core when it began and ended: above 1 the machine was not ours alone. */
    readonly load: readonly [number, number]
  }
  readonly seed: number
  readonly rounds: number
  /** Why there are no peers; `null` when there are. */
  readonly peersError: string | null
  readonly layer: readonly CpuLayerRow[]
  readonly gemm: readonly CpuGemmRow[]
}

/** At least as fast as the best peer up to 128 tokens, 0.9 of it beyond. */
export const layerAim = (tokens: number): number => (tokens <= 128 ? 1 : 0.9)
export const gemmAim = 0.8
export const bf16Aim = 1.7
/** Weights count as beyond the last-level cache from this many times its size on, or from 256 MiB where that is not known. */
export const beyondCache = (touchedBytes: number, cacheBytes: number | null): boolean =>
  touchedBytes >= (cacheBytes === null ? 256 * 2 ** 20 : 8 * cacheBytes)
