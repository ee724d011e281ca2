/** What a row of the families table says, and the few sentences in which it says it. The rows are in `families.ts`. */
import type { GatedActivation, RouterRule } from '@nexus/router-kernels'
import type { ModelConfig } from './config.js'

/** The layer that a configuration describes: numbers of `MoELayer.create`, no weights. */
export interface LayerSpec {
  /** `hidden_size`: width of a token. */
  readonly inputDim: number
  /** Width inside an expert, after the gate. */
  readonly hiddenDim: number
  readonly activation: GatedActivation
  readonly limit?: number
  readonly alpha?: number
  /** A preset of `@nexus/router-kernels` with this configuration's numbers; numExperts and topK are in it. */
  readonly router: RouterRule
  /** Llama-4: the routing weight scales the expert's input. */
  readonly scaleInput?: boolean
  /** The expert that sees every token; several of them are stored, and computed, as one wide one. Null: none. */
  readonly shared: { readonly hiddenDim: number } | null
}

/**
 * Where the experts' matrices are and how they lie. `I` is hiddenDim, `H` inputDim, `E` numExperts; names are relative to the
 * block, `{e}` is the expert's number.
 * - `per-expert`: gate and up [I, H], down [H, I], a tensor for each expert
 * - `fused`: gateUp [E, 2I, H] with the gate's rows first, down [E, H, I]: transformers 5 in memory, Granite on disk
 * - `fused-transposed`: gateUp [E, H, 2I], down [E, I, H] (x·W instead of x·Wᵀ); its columns alternate gate, up, gate, up
 *   (`columns: 'interleaved'`, GPT-OSS) or hold all gates first (`'blocks'`, Llama-4)
 */
export type ExpertTensors =
  | { readonly layout: 'per-expert'; readonly gate: string; readonly up: string; readonly down: string }
  | { readonly layout: 'fused'; readonly gateUp: string; readonly down: string }
  | {
      readonly layout: 'fused-transposed'
      readonly columns: 'interleaved' | 'blocks'
      readonly gateUp: string
      readonly down: string
      /** [E, 2I] in the order of the columns, and [E, H]. */
      readonly bias?: { readonly gateUp: string; readonly down: string }
    }

/** Names of a block's tensors, relative to the block. */
export interface BlockTensors {
  /** Names of the block within its layer, the one in published checkpoints first. */
  readonly block: readonly string[]
  /** [E, H]. Alternatives in order. */
  readonly router: readonly string[]
  /** [E], added to the logits. */
  readonly routerBias?: string
  /** [E] (or [1, E]), added to the scores for the choice alone. Alternatives in order. */
  readonly selectBias?: readonly string[]
  /** Alternatives in order: the first whose tensors are there is taken. */
  readonly experts: readonly [ExpertTensors, ...ExpertTensors[]]
  /** Name of the shared expert: `{shared}.gate_proj.weight` [S, H], `.up_proj.weight` [S, H], `.down_proj.weight` [H, S]. */
  readonly shared?: string
  /** [1, H]: a sigmoid of this product scales the shared expert's output. */
  readonly sharedGate?: string
}

/** One row: everything that the reader knows about a model family. */
export interface Family {
  /** Name in documentation and errors. */
  readonly name: string
  /** `model_type`s of `config.json`. */
  readonly modelTypes: readonly string[]
  readonly tensors: BlockTensors
  /** Reads the configuration. @throws CheckpointError for a value that is missing or senseless, UnsupportedError for a variant */
  spec(config: ModelConfig): LayerSpec
  /** Which layers have an MoE block, ascending. */
  moeLayers(config: ModelConfig): readonly number[]
}
