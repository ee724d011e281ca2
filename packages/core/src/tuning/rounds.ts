/** Sampling in rounds: every candidate in turn, so that what the clock or a neighbour does meets them all alike. */
import { scoreOf, type Timed } from './decide.js'
import { type LoadName, loads } from './series.js'

/** Candidates that are so many times slower than the best keep their first sample. */
const hopeless = 4
const fewestRounds = 5
const mostRounds = 15

/** Times that a candidate is run at the least: to be checked and estimated, then in every round, by both loads. */
export const fewestRuns = 2 * (fewestRounds + 3)

/** One candidate and its samples so far. */
export interface Trial extends Timed {
  readonly even: number[]
  readonly skewed: number[]
  sampleUs(load: LoadName): Promise<number>
}

export interface RoundsSite {
  /** The rounds beyond the fewest end then: a time of `performance.now()`. */
  readonly until: number
  readonly signal: AbortSignal | undefined
  /** Called before the candidates are sampled by another load. */
  readonly begin?: (load: LoadName) => Promise<void>
}

/** Fills the trials' samples. @throws the signal's reason */
export async function sampleInRounds(trials: readonly Trial[], { until, signal, begin }: RoundsSite): Promise<void> {
  // Round 0 warms up and is not counted.
  for (let round = 0; round <= mostRounds; round++) {
    const best = Math.min(...trials.map(scoreOf))
    // Another one first in every round: no candidate always comes behind the same one.
    const open = trials
      .map((_, i) => trials[(i + round) % trials.length])
      .filter((trial) => trial !== undefined)
      .filter((trial) => trial.heuristic || round <= 1 || scoreOf(trial) <= hopeless * best)
    for (const load of loads) {
      await begin?.(load)
      for (const trial of open) {
        signal?.throwIfAborted()
        const us = await trial.sampleUs(load)
        if (round > 0) trial[load].push(us)
      }
    }
    if (round >= fewestRounds && performance.now() > until) return
  }
}
