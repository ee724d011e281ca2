/** One linear layer at one number of tokens, alone: every variant checked, then timed, interleaved, by an even load and by a skewed one. */
import type { DeviceName, Stream } from '@nexus/native'
import type { Measured } from './decide.js'
import { LinearBench } from './linear-bench.js'
import type { LinearSpec } from './linears.js'
import { fewestRuns, sampleInRounds, type Trial } from './rounds.js'
import { type Routing, routings } from './routing.js'
import type { LoadName, Series } from './series.js'
import type { TuneWeights } from './tune-weights.js'

export interface Cell {
  readonly linear: LinearSpec
  readonly tokens: number
  readonly rows: number
  readonly measured: readonly Measured[]
}

/** What everything that is measured has in common. */
export interface Site {
  readonly weights: TuneWeights
  readonly device: DeviceName
  readonly stream: Stream
  readonly signal: AbortSignal | undefined
  readonly skew: number
  readonly seed: number
}

/** `fair`: a part's share of the time, for as many rounds as fit; `left`: all that is left. In milliseconds. */
export interface Budget {
  readonly fair: number
  readonly left: number
}

/** Different inputs for few tokens, whose experts are few: other ones in each launch. */
export const inputsFor = (tokens: number): number => (tokens <= 64 ? 8 : tokens <= 512 ? 4 : 2)

/** Of the biases that make a skewed load: cells and steps of as many tokens have the same. */
export const skewSeed = (seed: number, tokens: number): number => seed + tokens + 1

/**
 * Checks the variants, then times them in turn.
 * @returns `null` where the fewest rounds would take longer than what is left
 * @throws NexusError when two disagree; the signal's reason
 */
export async function measureCell(
  linear: LinearSpec,
  tokens: number,
  budget: Budget,
  site: Site,
): Promise<Cell | null> {
  const { weights, device, stream, signal } = site
  const until = performance.now() + budget.fair
  using bench = new LinearBench(linear, weights.of(linear), tokens, routed(linear, tokens, site), device, stream)
  const own = bench.candidates.find(({ heuristic }) => heuristic) ?? bench.candidates[0]
  const launchMs = own === undefined ? 0 : (await bench.estimateUs(own.name)) / 1e3
  if (bench.candidates.length * fewestRuns * launchMs > budget.left) return null
  await bench.check()
  const open: Series[] = []
  try {
    const trials: (Trial & Measured)[] = []
    for (const { name, order, heuristic, fusedStep } of bench.candidates) {
      signal?.throwIfAborted()
      const estimate = await bench.estimateUs(name)
      const record = (load: LoadName): Series => {
        const series = bench.series(name, load, estimate)
        open.push(series)
        return series
      }
      const series = { even: record('even'), skewed: record('skewed') }
      const sampleUs = (load: LoadName) => series[load].sampleUs()
      trials.push({ name, order, heuristic, fusedStep, even: [], skewed: [], sampleUs })
    }
    await sampleInRounds(trials, { until, signal })
    return { linear, tokens, rows: bench.rows, measured: trials.map(({ sampleUs, ...measured }) => measured) }
  } finally {
    for (const series of open) series[Symbol.dispose]()
  }
}

/** A dense layer has one routing. */
function routed(linear: LinearSpec, tokens: number, { skew, seed }: Site): Record<LoadName, readonly Routing[]> {
  const { numExperts, rowsPerToken: topK } = linear
  const shape = { tokens, numExperts, topK }
  if (numExperts === 1) return { even: routings(shape, 0, 1, seed), skewed: routings(shape, 0, 1, seed) }
  const count = inputsFor(tokens)
  return {
    even: routings(shape, 0, count, seed + tokens),
    skewed: routings(shape, skew, count, skewSeed(seed, tokens)),
  }
}
