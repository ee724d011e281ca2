/**
 * Timing in turns on a machine that others use too: every contestant runs a few calls, then the next one, round after round, and what is
 * compared is their ratio over the rounds, so that a neighbour's load falls on all of them.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { median } from '../median.js'
import { type RatioInterval, ratioOfMedians } from '../scheduling/statistics.js'

/** Runs `calls` calls and resolves with the microseconds of one. */
export type Turn = (calls: number) => Promise<number>

export interface Contestant {
  readonly name: string
  readonly turn: Turn
}

export interface TurnTimes {
  readonly us: number
  readonly minUs: number
  /** The times of all rounds, for ratios. */
  readonly rounds: readonly number[]
}

/** OpenMP's threads spin for a moment after their last loop, ours too: nobody's turn begins while another's threads still do. */
const settleMs = 5

/**
 * @param turnMs roughly how long a turn is; at least one call
 * @returns by name
 */
export async function inTurns(
  contestants: readonly Contestant[],
  rounds: number,
  turnMs: number,
): Promise<Map<string, TurnTimes>> {
  const times = new Map<string, number[]>()
  const calls = new Map<string, number>()
  for (const { name, turn } of contestants) {
    await turn(1) // warm: memory is laid out, threads are there
    const once = Math.min(await turn(1), await turn(1))
    calls.set(name, Math.max(1, Math.min(500, Math.floor((turnMs * 1e3) / once))))
    times.set(name, [])
  }
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < contestants.length; i++) {
      const contestant = contestants[(i + round) % contestants.length] // each follows each in turn
      if (contestant === undefined) continue
      await sleep(settleMs)
      times.get(contestant.name)?.push(await contestant.turn(calls.get(contestant.name) ?? 1))
    }
  }
  return new Map(
    [...times].map(([name, list]) => [name, { us: median(list), minUs: Math.min(...list), rounds: list }] as const),
  )
}

/** How many times faster ours is: their times over ours. */
export interface Faster extends RatioInterval {
  /** Of the fastest rounds: what is left when a neighbour's load disturbs one side more than the other. */
  readonly fastest: number
}

export const timesFaster = (theirs: TurnTimes, ours: TurnTimes): Faster => ({
  ...ratioOfMedians(theirs.rounds, ours.rounds),
  fastest: theirs.minUs / ours.minUs,
})

/** What an aim is held against: the less favourable of the medians and the fastest rounds. */
export const leastFaster = ({ ratio, fastest }: Faster): number => Math.min(ratio, fastest)
