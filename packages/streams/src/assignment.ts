/**
 * Experts to lanes (streams, slices) so that the last lane ends early. Strategies are pure functions of costs and speeds; one's own is an
 * object with a name and an `assign`.
 */

/** A way to spread work over lanes. Pure: the same answer for the same question, nothing changed, nothing kept. */
export interface AssignmentStrategy {
  readonly name: string
  /**
   * @param costs - work of each expert, finite and at least 0
   * @param lanes - how many there are, at least 1
   * @param speeds - work that each lane does in a unit of time, more than 0; all equal when it is left out
   * @returns the lane of each expert, 0 to lanes - 1
   */
  assign(costs: readonly number[], lanes: number, speeds?: readonly number[]): readonly number[]
}

/** When the last lane ends: the largest sum of a lane's costs over its speed. */
export function makespan(
  costs: readonly number[],
  laneOf: readonly number[],
  lanes: number,
  speeds?: readonly number[],
): number {
  const load = new Array<number>(lanes).fill(0)
  for (const [e, lane] of laneOf.entries()) load[lane] = (load[lane] ?? 0) + (costs[e] ?? 0)
  return load.reduce((latest, work, lane) => Math.max(latest, work / (speeds?.[lane] ?? 1)), 0)
}

/**
 * Longest processing time first (R. L. Graham, 1969): experts by falling cost, each to the lane that would end first with it. On lanes of
 * equal speed at most 4/3 - 1/(3·lanes) of the best makespan, on others at most twice.
 */
function longestFirst(): AssignmentStrategy {
  return {
    name: 'longest-first',
    assign(costs, lanes, speeds) {
      const order = costs.map((_, e) => e).sort((a, b) => (costs[b] ?? 0) - (costs[a] ?? 0) || a - b)
      const laneOf = new Array<number>(costs.length).fill(0)
      const load = new Array<number>(lanes).fill(0)
      const count = new Array<number>(lanes).fill(0)
      for (const e of order) {
        let best = 0
        let earliest = Number.POSITIVE_INFINITY
        for (let lane = 0; lane < lanes; lane++) {
          const ends = ((load[lane] ?? 0) + (costs[e] ?? 0)) / (speeds?.[lane] ?? 1)
          // Experts without work are spread too: the next step may give them some.
          if (ends < earliest || (ends === earliest && (count[lane] ?? 0) < (count[best] ?? 0))) {
            earliest = ends
            best = lane
          }
        }
        laneOf[e] = best
        load[best] = (load[best] ?? 0) + (costs[e] ?? 0)
        count[best] = (count[best] ?? 0) + 1
      }
      return laneOf
    },
  }
}

/** Expert e to lane e mod lanes, whatever it costs. */
function roundRobin(): AssignmentStrategy {
  return { name: 'round-robin', assign: (costs, lanes) => costs.map((_, e) => e % lanes) }
}

/**
 * Neighbours stay together: each lane has a range of experts, in order, cut so that the last lane ends as early as ranges in this
 * order allow (bisection over the ending time, to 1 part in 2^40).
 */
function contiguous(): AssignmentStrategy {
  return {
    name: 'contiguous',
    assign(costs, lanes, speeds) {
      const total = costs.reduce((sum, cost) => sum + cost, 0)
      if (total === 0) return costs.map((_, e) => Math.floor((e * lanes) / costs.length))
      const fill = (limit: number): number[] | null => {
        const laneOf: number[] = []
        let lane = 0
        let load = 0
        for (const cost of costs) {
          while (lane < lanes && load + cost > limit * (speeds?.[lane] ?? 1)) {
            lane++
            load = 0
          }
          if (lane === lanes) return null
          laneOf.push(lane)
          load += cost
        }
        return laneOf
      }
      let slowest = Number.POSITIVE_INFINITY
      for (let lane = 0; lane < lanes; lane++) slowest = Math.min(slowest, speeds?.[lane] ?? 1)
      let low = 0
      // A little more than enough: sums in another order may round differently.
      let high = (total / slowest) * (1 + 1e-9)
      let best = fill(high) ?? costs.map(() => 0)
      for (let i = 0; i < 40; i++) {
        const middle = (low + high) / 2
        const found = fill(middle)
        if (found === null) low = middle
        else {
          best = found
          high = middle
        }
      }
      return best
    },
  }
}

/** The built-in strategies, as functions that make them. */
export const assignments = { longestFirst, roundRobin, contiguous } as const
