/** Two laws that every model of a step's time here goes by. */

/** Time of memory and arithmetic together, in the unit of both: the longer, and of the shorter the part that is not hidden behind it. @internal */
export function join(memory: number, arithmetic: number, exposed: number): number {
  // Which is more is a toss-up from expert to expert: no branch.
  return Math.max(memory, arithmetic) + exposed * Math.min(memory, arithmetic)
}

/**
 * How much longer reads take that together ask for so many times what the memory has: 1 for few, as many times for many, and between them no edge, as
 * nobody waits in line for a memory that is asked for little. @internal
 */
export const slowed = (asked: number): number => Math.cbrt(1 + asked * asked * asked)
