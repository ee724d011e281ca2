/**
 * One suite for all policies, the built-in and one's own: it asks a policy for decisions in the situations that break policies,
 * and says what is wrong with the answers.
 */
import { describe } from '@nexus/native'
import type { Temperature } from '@nexus/profiler'
import { type CostModel, gatedExpertCost } from './cost.js'
import { h200 } from './device.js'
import { decisionViolations } from './guard.js'
import type { AllocationPolicy, Constraints, Decision, PolicySnapshot } from './policy.js'

/** One thing that a policy does wrong. */
export interface Violation {
  /** The situation, in words. */
  readonly situation: string
  readonly problem: string
}

const cost: CostModel = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
const chip: Constraints = { sms: 132, granularity: 8, minSms: 8, slices: 3, dwellSteps: 8, switchUs: 3 }

function snapshot(load: readonly number[], change: Partial<PolicySnapshot> = {}): PolicySnapshot {
  const temperatures = load.map((): Temperature => 'unknown')
  return {
    step: 100,
    load,
    temperatures,
    forecast: null,
    current: null,
    utilization: null,
    constraints: chip,
    cost,
    ...change,
  }
}

/** A fixed stream of numbers in [0, 1), so that the suite is the same everywhere. */
function stream(): () => number {
  let state = 1
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

/** The situations, by name: plain data, for tests of one's own too. */
export function situations(): readonly (readonly [name: string, snapshot: PolicySnapshot])[] {
  const next = stream()
  const skewed = (experts: number) => Array.from({ length: experts }, () => Math.round(4000 * next() ** 6))
  const forecast = (counts: readonly number[], score: number | null = 0.5) =>
    ({ method: 'trend', counts, score, horizonSteps: 8 }) as const
  const zeros = new Array<number>(8).fill(0)
  const sixteen = skewed(16)
  const laidOut = { sms: [68, 40, 24], sliceOf: sixteen.map((_, e) => e % 3), sinceStep: 0 }
  const fixed: [string, PolicySnapshot][] = [
    ['no experts', snapshot([])],
    ['one expert', snapshot([100])],
    ['one expert without load', snapshot([0])],
    ['two experts', snapshot([1, 1000])],
    ['no load at all', snapshot(zeros)],
    ['no load, but a forecast', snapshot(zeros, { forecast: forecast([9, 8, 7, 6, 5, 4, 3, 2]) })],
    ['a load, but a forecast of nothing', snapshot([9, 8, 7, 6, 5, 4, 3, 2], { forecast: forecast(zeros) })],
    ['a forecast without a score', snapshot([9, 8, 7, 6], { forecast: forecast([6, 7, 8, 9], null) })],
    ['all the load on one expert', snapshot([0, 0, 90000, 0, 0, 0, 0, 0])],
    ['an even load', snapshot(new Array<number>(64).fill(128))],
    ['loads below one assignment', snapshot([0.01, 0.2, 0.5, 0.9, 1e-9, 0])],
    ['loads as large as they come', snapshot([2 ** 31 - 1, 2 ** 31 - 1, 1, 0])],
    ['256 skewed experts', snapshot(skewed(256), { forecast: forecast(skewed(256)) })],
    ['1024 skewed experts', snapshot(skewed(1024))],
    ['no cost model', snapshot(skewed(32), { cost: null, forecast: forecast(skewed(32)) })],
    ['no cost model, no load', snapshot(zeros, { cost: null })],
    ['a current layout', snapshot(sixteen, { current: laidOut, utilization: [1, 0.4, 0.2] })],
    ['a current layout within its dwell', snapshot(sixteen, { current: { ...laidOut, sinceStep: 99 } })],
    ['a current layout that did nothing', snapshot(sixteen, { current: laidOut, utilization: [0, 0, 0] })],
    ['a current layout of fewer experts', snapshot(skewed(17), { current: laidOut })],
    ['a current layout of more SMs', snapshot(sixteen, { current: laidOut, constraints: { ...chip, sms: 100 } })],
    ['a current layout of more slices', snapshot(sixteen, { current: laidOut, constraints: { ...chip, slices: 2 } })],
    ['one slice', snapshot(sixteen, { constraints: { ...chip, slices: 1 } })],
    ['sixteen slices', snapshot(sixteen, { constraints: { ...chip, slices: 16 } })],
    ['more slices than fit', snapshot(skewed(64), { constraints: { ...chip, slices: 64 } })],
    ['the smallest device', snapshot(sixteen, { constraints: { ...chip, sms: 8 } })],
    ['eight virtual workers', snapshot(sixteen, { constraints: { ...chip, sms: 8, granularity: 1, minSms: 1 } })],
  ]
  const drawn = Array.from({ length: 40 }, (_, i): [string, PolicySnapshot] => {
    const experts = 1 + Math.floor(next() * 40)
    const granularity = 1 + Math.floor(next() * 8)
    const sms = granularity * (1 + Math.floor(next() * 20)) + Math.floor(next() * granularity)
    const constraints = {
      ...chip,
      sms,
      granularity,
      minSms: Math.min(sms - (sms % granularity), 1 + Math.floor(next() * 16)),
      slices: 1 + Math.floor(next() * 6),
    }
    return [
      `drawn ${i}`,
      snapshot(skewed(experts), { constraints, cost: next() < 0.5 ? null : cost, forecast: forecast(skewed(experts)) }),
    ]
  })
  return [...fixed, ...drawn]
}

function freeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) {
    for (const inner of Object.values(value)) freeze(inner)
    Object.freeze(value)
  }
  return value
}

/**
 * What a policy does wrong; an empty list for a good one. In each situation: it decides within the constraints (all SMs given, sizes
 * in portions and not too small, every expert in one slice, no slice idle, nothing that is no number), decides the same again,
 * changes nothing in what it was given, and can go on from its own decision.
 */
export function conformance(policy: AllocationPolicy): Violation[] {
  const violations: Violation[] = []
  if (typeof policy.name !== 'string' || policy.name === '') {
    violations.push({ situation: 'any', problem: `name: expected a name, got ${describe(policy.name)}` })
  }
  for (const [situation, given] of situations()) {
    const report = (problem: string) => violations.push({ situation, problem })
    const ask = (input: PolicySnapshot): Decision | null => {
      try {
        return policy.decide(input)
      } catch (error) {
        report(`threw ${error instanceof Error ? `${error.name}: ${error.message}` : describe(error)}`)
        return null
      }
    }
    const before = JSON.stringify(given)
    const first = ask(given)
    if (JSON.stringify(given) !== before) report('changed the snapshot that it was given')
    if (first === null) continue
    const problems = decisionViolations(first, given.constraints, given.load.length)
    for (const problem of problems) report(problem)
    // Frozen: a change that puts everything back is one too.
    const again = ask(freeze(structuredClone(JSON.parse(before) as PolicySnapshot)))
    if (again !== null && JSON.stringify(again) !== JSON.stringify(first)) {
      report('decided differently when asked the same again')
    }
    if (problems.length > 0) continue
    const onwards: PolicySnapshot = {
      ...given,
      step: given.step + 1000,
      current: { sms: first.sms, sliceOf: first.sliceOf, sinceStep: given.step },
      utilization: null,
    }
    const then = ask(onwards)
    if (then === null) continue
    for (const problem of decisionViolations(then, given.constraints, given.load.length)) {
      report(`going on from its own decision: ${problem}`)
    }
  }
  return violations
}
