/** The rungs of the ablation, as the original design presents itself; each adds one thing to another. */
import type { MoELayerOptions } from '@nexus/core'

const graphs = { captureAfter: 1, maxTokens: 2 ** 20, memoryBudgetBytes: 8 * 2 ** 30 }

/** A rung that is a layer of ours. */
export interface Rung {
  readonly name: string
  readonly what: string
  /** The rung that it adds to. */
  readonly base: string
  readonly options: Pick<MoELayerOptions, 'strategy' | 'graphs' | 'slices'>
}

/** A loop over the experts in PyTorch, eager. */
export const torchLoop = 'textbook loop, torch'
/** The same loop of our own primitives. */
export const ownLoop = 'textbook loop, ours'

export const rungs: readonly Rung[] = [
  { name: 'fused kernels', what: 'one grouped launch for all experts', base: ownLoop, options: { strategy: 'fused' } },
  {
    name: '+ graphs',
    what: 'the step recorded and replayed',
    base: 'fused kernels',
    options: { strategy: 'fused', graphs },
  },
  {
    name: '+ slices',
    what: 'hot, warm and cold experts in hardware slices of the chip, together',
    base: '+ graphs',
    options: { strategy: 'tiered', slices: { updateEverySteps: 16 }, graphs },
  },
  {
    name: '+ streams',
    what: 'experts on eight plain streams instead of slices',
    base: '+ graphs',
    options: { strategy: 'streams', graphs },
  },
  {
    name: 'auto',
    what: 'fused or tiered, by measurement',
    base: '+ graphs',
    options: { strategy: 'auto', slices: { updateEverySteps: 16 }, graphs },
  },
]
