// Experts to lanes: what strategies promise, and what stands between bad ones and a device.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  AssignmentError,
  type AssignmentStrategy,
  assign,
  assignmentConformance,
  assignmentSituations,
  assignments,
  makespan,
} from '../src/index.js'

/** The best makespan there is, by trying everything. */
function optimum(costs: readonly number[], lanes: number, speeds?: readonly number[]): number {
  let best = Number.POSITIVE_INFINITY
  const laneOf = costs.map(() => 0)
  const visit = (e: number) => {
    if (e === costs.length) {
      best = Math.min(best, makespan(costs, laneOf, lanes, speeds))
      return
    }
    for (let lane = 0; lane < lanes; lane++) {
      laneOf[e] = lane
      visit(e + 1)
    }
  }
  visit(0)
  return best
}

const costs = fc.array(fc.integer({ min: 0, max: 1000 }), { minLength: 1, maxLength: 8 })
const lanes = fc.integer({ min: 1, max: 3 })

describe.each(Object.values(assignments).map((make) => make()))('$name', (strategy) => {
  test('conforms', () => expect(assignmentConformance(strategy)).toEqual([]))
})

describe('longest first', () => {
  const { assign: lpt } = assignments.longestFirst()
  test('is at most 4/3 - 1/(3·lanes) of the best on equal lanes', () => {
    fc.assert(
      fc.property(costs, lanes, (work, m) => {
        const bound = (4 / 3 - 1 / (3 * m)) * optimum(work, m)
        expect(makespan(work, lpt(work, m), m)).toBeLessThanOrEqual(bound + 1e-9)
      }),
      { numRuns: 150 },
    )
  })
  test('reaches that bound where it is tight: 5, 5, 4, 4, 3, 3, 3 on three lanes', () => {
    const work = [5, 5, 4, 4, 3, 3, 3]
    expect(makespan(work, lpt(work, 3), 3)).toBe(11)
    expect(optimum(work, 3)).toBe(9)
  })
  test('is at most twice the best on lanes of differing speed', () => {
    const speeds = fc.array(fc.integer({ min: 1, max: 10 }), { minLength: 2, maxLength: 3 })
    fc.assert(
      fc.property(costs, speeds, (work, fast) => {
        const got = makespan(work, lpt(work, fast.length, fast), fast.length, fast)
        expect(got).toBeLessThanOrEqual(2 * optimum(work, fast.length, fast) + 1e-9)
      }),
      { numRuns: 150 },
    )
  })
  test('spreads experts without work too', () => {
    expect([...lpt([0, 0, 0, 0], 2)].sort()).toEqual([0, 0, 1, 1])
  })
})

test('contiguous ranges are cut as well as ranges can be', () => {
  const { assign: cut } = assignments.contiguous()
  const best = (work: readonly number[], m: number): number => {
    if (m === 1) return work.reduce((sum, n) => sum + n, 0)
    let least = Number.POSITIVE_INFINITY
    for (let i = 0; i <= work.length; i++) {
      const first = work.slice(0, i).reduce((sum, n) => sum + n, 0)
      least = Math.min(least, Math.max(first, best(work.slice(i), m - 1)))
    }
    return least
  }
  fc.assert(
    fc.property(costs, lanes, (work, m) => {
      const laneOf = cut(work, m)
      expect([...laneOf].sort((a, b) => a - b)).toEqual([...laneOf])
      expect(makespan(work, laneOf, m)).toBeLessThanOrEqual(best(work, m) * (1 + 1e-6))
    }),
    { numRuns: 150 },
  )
})

describe('a strategy of one’s own', () => {
  const of = (assign: AssignmentStrategy['assign']): AssignmentStrategy => ({ name: 'own', assign })
  test('that is right is followed', () => {
    expect(
      assign(
        of((work) => work.map(() => 1)),
        [3, 2],
        2,
      ),
    ).toEqual([1, 1])
  })
  test('that throws is an AssignmentError with the cause', () => {
    const cause = new Error('no idea')
    const ask = () =>
      assign(
        of(() => {
          throw cause
        }),
        [1],
        1,
      )
    expect(ask).toThrow(AssignmentError)
    expect(ask).toThrow(expect.objectContaining({ cause, code: 'ERR_NEXUS_ALLOCATION', violations: [] }))
    expect(ask).toThrow("assignment strategy 'own' threw: no idea")
  })
  test.each([
    [null, 'expected an array of 3 lanes, got null'],
    [[0, 1], 'expected 3 lanes, got 2'],
    [[0, 1, 2], 'expert 2: expected a lane from 0 to 1, got 2'],
    [[0, 0.5, 1], 'expert 1: expected a lane from 0 to 1, got 0.5'],
    [[0, Number.NaN, '1'], 'expert 1: expected a lane from 0 to 1, got NaN (and 1 more)'],
  ])('that answers %j is an AssignmentError that says why', (answer, message) => {
    const ask = () =>
      assign(
        of(() => answer as number[]),
        [1, 2, 3],
        2,
      )
    expect(ask).toThrow(AssignmentError)
    expect(ask).toThrow(message)
  })
  test('is asked no wrong question', () => {
    const fine = assignments.roundRobin()
    expect(() => assign(fine, [-1], 1)).toThrow(/costs\[0\]/)
    expect(() => assign(fine, [Number.NaN], 1)).toThrow(/costs\[0\]/)
    expect(() => assign(fine, [1], 0)).toThrow(/lanes/)
    expect(() => assign(fine, [1], 2, [1])).toThrow(/speeds: expected an array of 2/)
    expect(() => assign(fine, [1], 1, [0])).toThrow(/speeds\[0\]/)
    expect(() => assign({} as AssignmentStrategy, [1], 1)).toThrow(/expected an AssignmentStrategy/)
  })
  test('is found out by the suite', () => {
    const problems = (strategy: AssignmentStrategy) => assignmentConformance(strategy).map(({ problem }) => problem)
    let calls = 0
    expect(problems(of((work) => work.map(() => calls++ % 1)))).toEqual([])
    expect(problems(of((work, m) => work.map(() => Math.min(m - 1, calls++ % 2))))).toContain(
      'assigned differently when asked the same again',
    )
    expect(problems(of((work) => (work as number[]).sort().map(() => 0)))).toContain('changed what it was given')
    expect(problems(of((work, m) => work.map(() => m)))).toContainEqual(expect.stringMatching(/expected a lane/))
    expect(problems({ ...of((work) => work.map(() => 0)), name: '' })).toContainEqual(expect.stringMatching(/^name/))
    expect(assignmentSituations().length).toBeGreaterThan(40)
  })
})
