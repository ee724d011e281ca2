/** One suite for all assignment strategies, the built-in and one's own. */
import { describe } from '@nexus/native'
import type { AssignmentStrategy } from './assignment.js'
import { assignmentViolations } from './assignment-guard.js'

/** One thing that a strategy does wrong. */
export interface AssignmentViolation {
  /** The situation, in words. */
  readonly situation: string
  readonly problem: string
}

/** What a strategy is asked. */
export interface AssignmentSituation {
  readonly name: string
  readonly costs: readonly number[]
  readonly lanes: number
  readonly speeds?: readonly number[]
}

/** The situations that break strategies: plain data, for tests of one's own too. */
export function assignmentSituations(): readonly AssignmentSituation[] {
  let state = 1
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
  const skewed = (experts: number) => Array.from({ length: experts }, () => Math.round(4000 * next() ** 6))
  const fixed: AssignmentSituation[] = [
    { name: 'no experts', costs: [], lanes: 4 },
    { name: 'one expert, one lane', costs: [7], lanes: 1 },
    { name: 'one expert, many lanes', costs: [7], lanes: 8 },
    { name: 'no work at all', costs: [0, 0, 0, 0, 0], lanes: 3 },
    { name: 'all the work in one expert', costs: [0, 0, 9000, 0], lanes: 2 },
    { name: 'equal costs', costs: new Array<number>(64).fill(128), lanes: 8 },
    { name: 'fractions', costs: [0.1, 1e-12, 0.7, 5e-324], lanes: 2 },
    { name: 'costs as large as they come', costs: [2 ** 53, 2 ** 53, 1, 0], lanes: 2 },
    { name: 'more lanes than experts', costs: [3, 2, 1], lanes: 64 },
    { name: 'lanes of differing speed', costs: skewed(48), lanes: 3, speeds: [84, 40, 8] },
    { name: '1024 skewed experts', costs: skewed(1024), lanes: 64 },
  ]
  const drawn = Array.from({ length: 40 }, (_, i): AssignmentSituation => {
    const lanes = 1 + Math.floor(next() * 9)
    const speeds = next() < 0.5 ? {} : { speeds: Array.from({ length: lanes }, () => 8 + Math.floor(next() * 100)) }
    return { name: `drawn ${i}`, costs: skewed(Math.floor(next() * 80)), lanes, ...speeds }
  })
  return [...fixed, ...drawn]
}

/**
 * What a strategy does wrong; an empty list for a good one. In each situation: every expert has a lane that is there, the same question has
 * the same answer, and nothing that it was given is changed.
 */
export function assignmentConformance(strategy: AssignmentStrategy): AssignmentViolation[] {
  const violations: AssignmentViolation[] = []
  if (typeof strategy.name !== 'string' || strategy.name === '') {
    violations.push({ situation: 'any', problem: `name: expected a name, got ${describe(strategy.name)}` })
  }
  for (const { name, costs, lanes, speeds } of assignmentSituations()) {
    const report = (problem: string) => violations.push({ situation: name, problem })
    const ask = (frozen: boolean) => {
      const [given, fast] = [[...costs], speeds && [...speeds]]
      if (frozen) Object.freeze(given)
      if (frozen && fast) Object.freeze(fast)
      try {
        const answer: unknown = strategy.assign(given, lanes, fast)
        if (JSON.stringify([given, fast]) !== JSON.stringify([costs, speeds])) report('changed what it was given')
        return { answer }
      } catch (error) {
        report(`threw ${error instanceof Error ? `${error.name}: ${error.message}` : describe(error)}`)
        return null
      }
    }
    const first = ask(false)
    if (first === null) continue
    for (const problem of assignmentViolations(first.answer, costs.length, lanes)) report(problem)
    // Frozen: a change that puts everything back is one too.
    const again = ask(true)
    if (again !== null && JSON.stringify(again.answer) !== JSON.stringify(first.answer)) {
      report('assigned differently when asked the same again')
    }
  }
  return violations
}
