/** Whole steps at one number of tokens: some pairs of variants of one MLP's linear layers, interleaved, by an even load and by a skewed one. */
import type { LayerConfig } from '../options.js'
import type { Budget, Cell, Site } from './cell.js'
import { type Decision, decide, type Timed } from './decide.js'
import type { MlpName } from './linears.js'
import { type Pair, pairName, pairsOf } from './pairs.js'
import { fewestRuns, sampleInRounds, type Trial } from './rounds.js'
import type { Series } from './series.js'
import { type Choice, StepBench, type StepSize } from './step-bench.js'

/** What was found about one MLP in a step. */
export interface Step {
  readonly mlp: MlpName
  readonly tokens: number
  /** The MLP's linear layers, alone. */
  readonly cells: readonly Cell[]
  readonly measured: readonly (Timed & { readonly pair: Pair })[]
  readonly decision: Decision
  /** The heuristic's pair unless another one is faster by more than the noise. */
  readonly chosen: Pair
}

/** @returns a pair of the cells' variants as what a step is made with */
export const choicesOf = (cells: readonly Cell[], pair: Pair): readonly Choice[] =>
  cells.flatMap(({ linear }, i) => {
    const variant = pair[i]
    return variant === undefined ? [] : [{ linear, variant }]
  })

/**
 * Times the pairs in turn, in steps whose other MLP has what is chosen for it already.
 * @param cells the MLP's linear layers
 * @param others what the rest of the step runs
 * @returns `null` where the fewest rounds would take longer than what is left
 */
export async function measureStep(
  config: LayerConfig,
  cells: readonly [Cell, ...Cell[]],
  others: readonly Choice[],
  budget: Budget,
  site: Site,
): Promise<Step | null> {
  const { signal } = site
  const until = performance.now() + budget.fair
  const [{ tokens, linear }] = cells
  const pairs = pairsOf(cells.map(({ measured }) => measured))
  using bench = new StepBench(config, tokens, site)
  const open: Series[] = []
  try {
    await bench.load('even')
    const trials: (Trial & { pair: Pair })[] = []
    // The same for all pairs, so that they have the same inputs, and with them the same loads.
    let size: StepSize | null = null
    for (const [i, pair] of pairs.entries()) {
      signal?.throwIfAborted()
      const choices = [...choicesOf(cells, pair), ...others]
      const own = await bench.estimate(choices)
      size ??= own
      if (i === 0 && (pairs.length * fewestRuns * own.us) / 1e3 > budget.left) return null
      const series = await bench.series(choices, size, pairs.length)
      open.push(series)
      const sampleUs = () => series.sampleUs()
      // The heuristic's comes first.
      trials.push({ name: pairName(pair), pair, heuristic: i === 0, even: [], skewed: [], sampleUs })
    }
    await sampleInRounds(trials, { until, signal, begin: (load) => bench.load(load) })
    const decision = decide(trials)
    const chosen = trials.find(({ name }) => name === decision.chosen)?.pair ?? []
    const measured = trials.map(({ sampleUs, ...timed }) => timed)
    return { mlp: linear.mlp, tokens, cells, measured, decision, chosen }
  } finally {
    for (const series of open) series[Symbol.dispose]()
  }
}
