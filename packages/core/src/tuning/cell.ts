/** One linear layer at one number of tokens: every variant checked, then timed, interleaved, by an even load and by a skewed one. */
import type { DeviceName, Stream } from '@nexus/native'
import { type Decision, decide, type Measured, medianOf } from './decide.js'
import { LinearBench, type LinearWeights, type LoadName, loads, type Series } from './linear-bench.js'
import type { LinearSpec } from './linears.js'
import { type Routing, routings } from './routing.js'

/** Candidates that are so many times slower than the best keep their first sample. */
const hopeless = 4
const sampleUs = 300
const fewestRounds = 5
const mostRounds = 15

export interface Cell {
  readonly tokens: number
  readonly rows: number
  readonly measured: readonly Measured[]
  readonly decision: Decision
}

export interface Site {
  readonly weights: LinearWeights
  readonly device: DeviceName
  readonly stream: Stream
  readonly signal: AbortSignal | undefined
  readonly skew: number
  readonly seed: number
}

/** `fair`: this cell's share of the time, for as many rounds as fit; `left`: all that is left. In milliseconds. */
export interface CellBudget {
  readonly fair: number
  readonly left: number
}

/**
 * Checks the variants, then times them in turn, so that what the clock or a neighbour does meets them all alike.
 * @returns `null` where the fewest rounds would take longer than what is left
 * @throws NexusError when two disagree; the signal's reason
 */
export async function measureCell(tokens: number, budget: CellBudget, site: Site): Promise<Cell | null> {
  const { weights, device, stream, signal } = site
  const began = performance.now()
  using bench = new LinearBench(weights, tokens, routed(weights.linear, tokens, site), device, stream)
  const own = bench.candidates.find(({ heuristic }) => heuristic) ?? bench.candidates[0]
  // Each is launched to be checked and estimated, then at least once in each of the rounds, by both loads.
  const launches = bench.candidates.length * 2 * (fewestRounds + 3)
  const launchMs = own === undefined ? 0 : (await bench.estimateUs(own.name)) / 1e3
  if (launches * launchMs > budget.left) return null
  await bench.check()
  const open: Series[] = []
  try {
    const trials: Trial[] = []
    for (const { name, order, heuristic, fusedStep } of bench.candidates) {
      signal?.throwIfAborted()
      const estimate = await bench.estimateUs(name)
      const record = (load: LoadName): Series => {
        const series = bench.series(name, load, estimate, sampleUs)
        open.push(series)
        return series
      }
      const series = { even: record('even'), skewed: record('skewed') }
      trials.push({ name, order, heuristic, fusedStep, series, even: [], skewed: [] })
    }
    // Round 0 warms up and is not counted.
    for (let round = 0; round <= mostRounds; round++) {
      const best = Math.min(...trials.map(scoreOf))
      for (let i = 0; i < trials.length; i++) {
        signal?.throwIfAborted()
        // Another one first in every round: no variant always comes behind the same one.
        const trial = trials[(i + round) % trials.length]
        if (trial === undefined || (!trial.heuristic && round > 1 && scoreOf(trial) > hopeless * best)) continue
        for (const load of loads) {
          const us = await trial.series[load].sampleUs()
          if (round > 0) trial[load].push(us)
        }
      }
      if (round >= fewestRounds && performance.now() - began > budget.fair) break
    }
    const measured = trials.map(({ series, ...samples }) => samples)
    return { tokens, rows: bench.rows, measured, decision: decide(measured) }
  } finally {
    for (const series of open) series[Symbol.dispose]()
  }
}

interface Trial extends Measured {
  readonly series: Readonly<Record<LoadName, Series>>
  readonly even: number[]
  readonly skewed: number[]
}

const scoreOf = ({ even, skewed }: Measured): number =>
  even.length === 0 ? Number.POSITIVE_INFINITY : Math.sqrt(medianOf(even) * medianOf(skewed))

/** Several for few tokens, whose experts are few: other ones each time. A dense layer has one. */
function routed(linear: LinearSpec, tokens: number, { skew, seed }: Site): Record<LoadName, readonly Routing[]> {
  const { numExperts, rowsPerToken: topK } = linear
  const count = numExperts === 1 ? 1 : tokens <= 64 ? 8 : tokens <= 512 ? 4 : 2
  const shape = { tokens, numExperts, topK }
  return {
    even: routings(shape, 0, count, seed + tokens),
    skewed: numExperts === 1 ? routings(shape, 0, 1, seed + tokens) : routings(shape, skew, count, seed + tokens + 1),
  }
}
