/** What stands between a strategy and a device: an assignment is looked at whole before anything acts on it. */
import { checkInteger, checkNumber, describe } from '@nexus/native'
import type { AssignmentStrategy } from './assignment.js'
import { AssignmentError } from './errors.js'

/** What is wrong with an assignment, one sentence each (at most 8); an empty list when it can be followed. */
export function assignmentViolations(value: unknown, experts: number, lanes: number): string[] {
  if (!Array.isArray(value)) return [`expected an array of ${experts} lanes, got ${describe(value)}`]
  if (value.length !== experts) return [`expected ${experts} lanes, got ${value.length}`]
  const violations: string[] = []
  for (let e = 0; e < experts && violations.length < 8; e++) {
    const lane: unknown = value[e]
    if (typeof lane === 'number' && Number.isInteger(lane) && lane >= 0 && lane < lanes) continue
    violations.push(`expert ${e}: expected a lane from 0 to ${lanes - 1}, got ${describe(lane)}`)
  }
  return violations
}

/**
 * A strategy's assignment, checked.
 * @throws TypeError, RangeError naming the argument; AssignmentError when the strategy throws (its error is the `cause`) or its assignment
 * cannot be followed (`violations`)
 */
export function assign(
  strategy: AssignmentStrategy,
  costs: readonly number[],
  lanes: number,
  speeds?: readonly number[],
): readonly number[] {
  if (typeof strategy?.assign !== 'function') {
    throw new TypeError(`strategy: expected an AssignmentStrategy, got ${describe(strategy)}`)
  }
  if (!Array.isArray(costs)) throw new TypeError(`costs: expected an array, got ${describe(costs)}`)
  for (const [e, cost] of costs.entries()) checkNumber(`costs[${e}]`, cost, 0)
  checkInteger('lanes', lanes, 1)
  if (speeds !== undefined) {
    if (!Array.isArray(speeds) || speeds.length !== lanes) {
      throw new TypeError(`speeds: expected an array of ${lanes}, got ${describe(speeds)}`)
    }
    for (const [lane, speed] of speeds.entries()) checkNumber(`speeds[${lane}]`, speed, Number.MIN_VALUE)
  }
  let made: readonly number[]
  try {
    const own = strategy.assign(costs, lanes, speeds)
    // A strategy may use its array again: what is looked at here must be what is acted on later.
    made = Array.isArray(own) ? own.slice() : own
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : describe(cause)
    throw new AssignmentError(`assignment strategy '${strategy.name}' threw: ${why}`, { cause })
  }
  const violations = assignmentViolations(made, costs.length, lanes)
  if (violations.length === 0) return made
  const more = violations.length > 1 ? ` (and ${violations.length - 1} more)` : ''
  throw new AssignmentError(`assignment strategy '${strategy.name}' assigned what cannot be: ${violations[0]}${more}`, {
    violations,
  })
}
