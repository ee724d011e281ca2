import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  type AllocationPolicy,
  arrange,
  type Constraints,
  conformance,
  type Decision,
  decide,
  decisionViolations,
  gatedExpertCost,
  h200,
  type PolicySnapshot,
  type PowerModel,
  policies,
  predictEnergy,
  predictStep,
  SliceAllocationError,
} from '../src/index.js'

const cost = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
const chip: Constraints = { sms: 132, granularity: 8, minSms: 8, slices: 3, dwellSteps: 8, switchUs: 3 }
const given = (change: Partial<PolicySnapshot> = {}): PolicySnapshot => ({
  step: 100,
  load: [4000, 2000, 1000, 500, 250, 10],
  temperatures: new Array(6).fill('unknown'),
  forecast: null,
  current: null,
  utilization: null,
  constraints: chip,
  cost,
  ...change,
})
/** An H200's prices, with SMs dear enough to matter. */
const power: PowerModel = { idleWatts: 107, joulesPerByte: 1.16e-10, joulesPerFlop: 5e-13, smWatts: 1 }
const policy = (name: string, decide: (snapshot: PolicySnapshot) => Decision): AllocationPolicy => ({ name, decide })

describe('every built-in policy conforms', () => {
  for (const [name, make] of Object.entries(policies)) test(name, () => expect(conformance(make())).toEqual([]))
  test.each([
    ['joules', { power }],
    ['joules within a bound', { power, latencyBoundUs: 120 }],
    ['joules within a bound that nothing meets', { power, latencyBoundUs: 1e-3 }],
    ['joules of which nothing is known', {}],
  ])('adaptive by %s', (_, options) => {
    expect(conformance(policies.adaptive({ objective: 'joules', ...options }))).toEqual([])
  })
})

describe('the conformance suite finds', () => {
  const good = policies.proportional()
  const problems = (decide: (snapshot: PolicySnapshot) => unknown) =>
    conformance(policy('bad', decide as (snapshot: PolicySnapshot) => Decision)).map(({ problem }) => problem)
  test('one that throws, and in which situation', () => {
    const violations = conformance(
      policy('bad', (snapshot) => {
        if (snapshot.load.length === 0) throw new Error('no experts')
        return good.decide(snapshot)
      }),
    )
    expect(violations).toContainEqual({ situation: 'no experts', problem: 'threw Error: no experts' })
    expect(new Set(violations.map(({ situation }) => situation))).toEqual(new Set(['no experts']))
  })
  test('SMs that lie idle, and SMs that are not there', () => {
    const shifted = (by: number) => (snapshot: PolicySnapshot) => {
      const { sms, ...rest } = good.decide(snapshot)
      return { ...rest, sms: sms.map((n, s) => (s === 0 ? n + by : n)) }
    }
    expect(problems(shifted(-8))).toContainEqual('sms: expected a sum of 132, got 124')
    expect(problems(shifted(8))).toContainEqual('sms: expected a sum of 132, got 140')
  })
  test('sizes that the device cannot make', () => {
    expect(
      problems(({ load }) => ({ sms: [66, 66], sliceOf: load.map((_, e) => e % 2), reason: 'halves' })),
    ).toContainEqual('sms: expected multiples of 8, but for one slice; 2 are not')
    expect(problems(({ load }) => ({ sms: [128, 4], sliceOf: load.map((_, e) => e % 2), reason: 'x' }))).toContainEqual(
      'sms[1]: expected at least 8, got 4',
    )
  })
  test('what is no number, no slice, no reason, no decision', () => {
    expect(problems((s) => ({ ...good.decide(s), sms: [Number.NaN] }))).toContainEqual(
      'sms[0]: expected a positive integer, got NaN',
    )
    expect(problems((s) => ({ ...good.decide(s), sliceOf: s.load.map(() => -1) }))).toContainEqual(
      expect.stringMatching(/sliceOf\[0\]: expected a slice from 0 to \d+, got -1/),
    )
    expect(problems((s) => ({ ...good.decide(s), reason: '' }))).toContainEqual(expect.stringMatching(/^reason/))
    expect(problems(() => undefined)).toContainEqual('expected a decision, got undefined')
  })
  test('a slice without experts', () => {
    expect(problems((s) => ({ ...good.decide(s), sliceOf: s.load.map(() => 0) }))).toContainEqual(
      'slice 1 has SMs and no expert',
    )
  })
  test('one that is not a function of the snapshot', () => {
    let calls = 0
    expect(problems((s) => ({ ...good.decide(s), reason: `call ${calls++}` }))).toContainEqual(
      'decided differently when asked the same again',
    )
  })
  test('one that changes what it is given, also when it puts it back', () => {
    const sorts = (s: PolicySnapshot) => {
      ;(s.load as number[]).sort((a, b) => b - a)
      return good.decide(s)
    }
    expect(problems(sorts)).toContainEqual('changed the snapshot that it was given')
    const swaps = (s: PolicySnapshot) => {
      const load = s.load as number[]
      load[0] = Number(load[0])
      return good.decide(s)
    }
    expect(problems(swaps)).toContainEqual(expect.stringMatching(/threw TypeError/))
  })
})

describe('the guard turns a bad policy into an AllocationError', () => {
  test('that has the cause, when it threw', () => {
    const cause = new RangeError('oops')
    const bad = policy('mine', () => {
      throw cause
    })
    let caught: unknown
    try {
      decide(bad, given())
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(SliceAllocationError)
    expect(caught).toMatchObject({ code: 'ERR_NEXUS_ALLOCATION', cause, message: "policy 'mine' threw: oops" })
  })
  test('that lists what is wrong, when it decided nonsense', () => {
    const bad = policy('mine', () => ({ sms: [100], sliceOf: [0], reason: 'why not' }))
    expect(() => decide(bad, given())).toThrow(
      expect.objectContaining({
        name: 'SliceAllocationError',
        violations: ['sms: expected a sum of 132, got 100', expect.stringMatching(/sliceOf: expected an array of 6/)],
      }),
    )
  })
})

describe('arrangements', () => {
  const load = fc.array(fc.oneof(fc.nat(20), fc.nat(8000)), { minLength: 1, maxLength: 40 })
  const constraints = fc.record({
    sms: fc.integer({ min: 8, max: 200 }),
    granularity: fc.constantFrom(1, 2, 8),
    minSms: fc.constantFrom(1, 4, 8),
    slices: fc.integer({ min: 1, max: 6 }),
    dwellSteps: fc.constant(8),
    switchUs: fc.constant(3),
  })
  test('can always be followed, with and without a cost model', () => {
    fc.assert(
      fc.property(load, constraints, fc.boolean(), (counts, limits, known) => {
        const arranged = arrange(counts, limits, known ? cost : null)
        expect(decisionViolations({ ...arranged, reason: 'test' }, limits, counts.length)).toEqual([])
      }),
    )
  })
  test('an expert is never in a colder slice than one with less load', () => {
    fc.assert(
      fc.property(load, constraints, (counts, limits) => {
        const { sliceOf } = arrange(counts, limits, cost)
        for (const [a, x] of counts.entries()) {
          for (const [b, y] of counts.entries()) if (x > y) expect(sliceOf[a]).toBeLessThanOrEqual(sliceOf[b] ?? 0)
        }
      }),
    )
  })
  test('are close to the best of all cuts and sizes, which small cases allow to try', () => {
    let worst = 1
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.nat(20), fc.nat(4000)), { minLength: 3, maxLength: 7 }),
        fc.boolean(),
        (counts, known) => {
          fc.pre(counts.some((n) => n > 0))
          const model = known ? cost : null
          const limits = { ...chip, sms: 64 }
          const order = counts.map((_, e) => e).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b)
          let best = Number.POSITIVE_INFINITY
          for (let first = 1; first < counts.length - 1; first++) {
            for (let second = first + 1; second < counts.length; second++) {
              const sliceOf = new Array<number>(counts.length).fill(0)
              for (const [i, e] of order.entries()) sliceOf[e] = i < first ? 0 : i < second ? 1 : 2
              for (let a = 8; a <= 48; a += 8) {
                for (let b = 8; a + b <= 56; b += 8) {
                  best = Math.min(best, predictStep(model, counts, { sms: [a, b, 64 - a - b], sliceOf }).stepUs)
                }
              }
            }
          }
          const ours = arrange(counts, limits, model).predictedUs
          expect(ours).toBeGreaterThanOrEqual(best * (1 - 1e-9))
          worst = Math.max(worst, ours / best)
        },
      ),
      { numRuns: 300, seed: 11 },
    )
    expect(worst).toBeLessThan(1.5)
  })
})

describe('what each policy believes', () => {
  const current = { ...arrange(given().load, chip, cost), sinceStep: 0 }
  const reversed = [...given().load].reverse()
  test('static keeps what it first arranged', () => {
    expect(policies.static().decide(given({ load: reversed, current }))).toMatchObject({
      sms: current.sms,
      sliceOf: current.sliceOf,
    })
  })
  test('proportional follows the last window, forecast or not', () => {
    const forecast = { method: 'trend', counts: given().load, score: 0.1, horizonSteps: 8 } as const
    const decided = policies.proportional().decide(given({ load: reversed, current, forecast }))
    expect(decided.sliceOf).toEqual(arrange(reversed, chip, cost).sliceOf)
  })
  test('dynamic moves one portion from the idlest to the busiest slice, when that helps', () => {
    const laidOut = { sms: [60, 40, 32], sliceOf: [0, 0, 1, 1, 2, 2], sinceStep: 0 }
    const decided = policies.dynamic().decide(given({ current: laidOut, utilization: [1, 0.6, 0.2] }))
    expect(decided.sms).toEqual([68, 40, 24])
    expect(decided.sliceOf).toEqual(laidOut.sliceOf)
    expect(policies.dynamic().decide(given({ current: laidOut, utilization: [1, 0.98, 0.97] })).sms).toEqual([
      60, 40, 32,
    ])
  })
  test('adaptive follows a forecast that beats the last window, and no other', () => {
    const forecast = (score: number | null) => ({ method: 'trend', counts: reversed, score, horizonSteps: 8 }) as const
    const adaptive = policies.adaptive()
    expect(adaptive.decide(given({ current, forecast: forecast(0.5) })).sliceOf).toEqual(
      arrange(reversed, chip, cost).sliceOf,
    )
    for (const score of [1, 1.2, null]) {
      expect(adaptive.decide(given({ current, forecast: forecast(score) })).sliceOf).toEqual(current.sliceOf)
    }
  })
  test('adaptive moves experts but no SMs while sizes have to stay, and nothing for a small gain', () => {
    const skewed = { ...current, sms: [24, 24, 84], sinceStep: 96 }
    expect(policies.adaptive().decide(given({ current: skewed })).sms).toEqual([24, 24, 84])
    expect(policies.adaptive().decide(given({ current: { ...skewed, sinceStep: 0 } })).sms).not.toEqual([24, 24, 84])
    const nearly = given().load.map((n, e) => n * (1 + 0.001 * (e % 2)))
    expect(policies.adaptive().decide(given({ load: nearly, current })).reason).toMatch(/^kept/)
  })
  test('options are refused by name', () => {
    expect(() => policies.adaptive({ leastGain: 2 })).toThrow(/options\.leastGain/)
    expect(() => policies.dynamic({ leastGains: 1 } as object)).toThrow(/unknown option 'leastGains'/)
  })
})

describe('adaptive by joules', () => {
  const joules = (options: object = {}) => policies.adaptive({ objective: 'joules', power, ...options })
  const counts = fc.array(fc.oneof(fc.nat(20), fc.nat(400)), { minLength: 6, maxLength: 24 })
  const energy = (load: readonly number[], { sms, sliceOf }: Decision) =>
    predictEnergy(cost, power, load, { sms, sliceOf })

  test('takes no more energy than the soonest arrangement, and ends within the bound where that one does', () => {
    let fewer = 0
    fc.assert(
      fc.property(counts, fc.double({ min: 1, max: 1.5, noNaN: true }), (load, slack) => {
        fc.pre(load.some((n) => n > 0))
        const soonest = energy(load, { ...arrange(load, chip, cost), reason: '' })
        const latencyBoundUs = soonest.stepUs * slack
        const chosen = energy(load, joules({ latencyBoundUs }).decide(given({ load })))
        expect(chosen.joules).toBeLessThanOrEqual(soonest.joules)
        expect(chosen.stepUs).toBeLessThanOrEqual(latencyBoundUs)
        if (chosen.joules < soonest.joules * 0.999) fewer++
      }),
      { seed: 5 },
    )
    // It is another choice than by time, not seldom.
    expect(fewer).toBeGreaterThan(10)
  })
  test('queues experts that wait for memory on a third of the chip: as soon, and with fewer busy SMs', () => {
    const load = new Array<number>(64).fill(4)
    const model = { ...cost, overlap: 'slice' as const, overheadUs: 0 }
    const soonest = predictEnergy(model, power, load, arrange(load, chip, model))
    const chosen = joules().decide(given({ load, cost: model }))
    const found = predictEnergy(model, power, load, chosen)
    expect(found.joules).toBeLessThan(0.95 * soonest.joules)
    expect(found.stepUs).toBeLessThan(1.02 * soonest.stepUs)
    const experts = chosen.sms.map((_, s) => chosen.sliceOf.filter((x) => x === s).length)
    expect(chosen.sms[experts.indexOf(Math.max(...experts))]).toBeLessThanOrEqual(48)
  })
  test('where an SM costs nothing of its own, the soonest layout is the most frugal one', () => {
    const load = new Array<number>(64).fill(4)
    const { smWatts: _, ...rest } = power
    const decided = policies.adaptive({ objective: 'joules', power: rest }).decide(given({ load }))
    expect(decided).toMatchObject({ sms: arrange(load, chip, cost).sms })
  })
  test('stays where nothing saves enough, and says what it saves where it moves', () => {
    const load = [9000, 4000, 3000, 900, 40, 40, 40, 40, 30, 30, 20, 20, 10, 10, 10, 10, 5, 5, 2, 1]
    const first = joules().decide(given({ load }))
    expect(first.reason).toBe('arranged for the least joules by the last window')
    const again = joules().decide(given({ load, current: { ...first, sinceStep: 0 } }))
    expect(again).toMatchObject({ sms: first.sms, sliceOf: first.sliceOf })
    expect(again.reason).toBe('kept: no change saves enough energy by the last window')
    const poor = { sms: [24, 24, 84], sliceOf: first.sliceOf, sinceStep: 0 }
    const moved = joules({ latencyBoundUs: 5000 }).decide(given({ load, current: poor }))
    expect(moved.reason).toMatch(
      /^slices resized .* % fewer joules \([\d.]+ mJ a step, [\d.]+ µs of at most 5.00e\+3 µs\)$/,
    )
    // Sizes that have just changed stay.
    const early = joules().decide(given({ load, current: { ...poor, sinceStep: 99 } }))
    expect(early.sms).toEqual(poor.sms)
  })
  test('leaves a layout that is over the bound for one that is within it, though it saves nothing', () => {
    const load = [9000, 4000, 3000, 900, 40, 40, 40, 40, 30, 30, 20, 20, 10, 10, 10, 10, 5, 5, 2, 1]
    const idle = { sms: [8, 8, 116], sliceOf: load.map((_, e) => (e === 0 ? 0 : e === 1 ? 1 : 2)), sinceStep: 0 }
    const soonest = energy(load, { ...arrange(load, chip, cost), reason: '' })
    const before = energy(load, { ...idle, reason: '' })
    // A device that costs nothing while it waits: slow is as frugal as soon.
    const waits: PowerModel = { idleWatts: 0, joulesPerByte: 1e-10, joulesPerFlop: 5e-13 }
    const latencyBoundUs = (soonest.stepUs + before.stepUs) / 2
    const decide = (bound: number | null) =>
      policies
        .adaptive({ objective: 'joules', power: waits, latencyBoundUs: bound })
        .decide(given({ load, current: idle }))
    expect(decide(null).reason).toMatch(/^kept/)
    const moved = decide(latencyBoundUs)
    expect(moved.reason).toMatch(/back within the bound, [\d.]+ µs of at most/)
    expect(predictStep(cost, load, moved).stepUs).toBeLessThanOrEqual(latencyBoundUs)
  })
  test('says so when no layout is within the bound, and takes the soonest', () => {
    const decided = joules({ latencyBoundUs: 1 }).decide(given())
    expect(decided.reason).toMatch(/no layout is predicted within 1.00 µs, the soonest takes [\d.]+ µs/)
    expect(decided).toMatchObject({ sms: arrange(given().load, chip, cost).sms })
    const kept = joules({ latencyBoundUs: 1 }).decide(given({ current: { ...decided, sinceStep: 0 } }))
    expect(kept.reason).toMatch(/^kept: no layout is predicted within/)
  })
  test.each([
    ['the power is not known', {}, cost],
    ['there is no cost model', { power }, null],
  ])('falls back to time when %s, and says so', (why, options, model) => {
    const snapshot = given({ cost: model })
    const byTime = policies.adaptive().decide(snapshot)
    const decided = policies.adaptive({ objective: 'joules', ...options }).decide(snapshot)
    expect(decided).toEqual({ ...byTime, reason: `by time, for ${why}: ${byTime.reason}` })
  })
  test('options are refused by name', () => {
    expect(() => policies.adaptive({ objective: 'watts' } as object)).toThrow(/options\.objective: expected one of/)
    expect(() => policies.adaptive({ latencyBoundUs: 100 })).toThrow(/options\.latencyBoundUs: is for the objective/)
    expect(() => policies.adaptive({ power })).toThrow(/options\.power: is for the objective 'joules' only/)
    expect(() => joules({ latencyBoundUs: 0 })).toThrow(/options\.latencyBoundUs/)
    expect(() => joules({ power: { ...power, idleWatts: -1 } })).toThrow(/options\.power\.idleWatts/)
    expect(() => joules({ power: { ...power, wattsPerByte: 1 } })).toThrow(/unknown option 'wattsPerByte'/)
  })
})

describe('a decision does not depend on the ones before', () => {
  const load = fc.oneof(
    fc.array(fc.nat(5000), { minLength: 1, maxLength: 300 }),
    fc.array(fc.double({ min: 0, max: 5000, noNaN: true }), { minLength: 1, maxLength: 300 }),
    fc.tuple(fc.integer({ min: 1, max: 300 }), fc.nat(3)).map(([n, x]) => new Array<number>(n).fill(x)),
  )
  const model = fc.constantFrom(null, cost, { ...cost, overlap: 'slice' as const, exposed: 0.3, rowTile: 16 })

  test('the same snapshot after any other: the same arrangement, decision and prediction', () => {
    fc.assert(
      fc.property(load, load, model, model, (first, second, one, two) => {
        const ask = () => {
          const arranged = arrange(first, chip, one)
          const by = [policies.adaptive(), policies.adaptive({ objective: 'joules', power })].map((policy) =>
            policy.decide(given({ load: first, cost: one, current: { ...arranged, sinceStep: 0 } })),
          )
          return JSON.stringify([arranged, by, predictStep(one, first, arranged)])
        }
        const before = ask()
        policies.adaptive({ objective: 'joules', power }).decide(given({ load: second, cost: two }))
        arrange(second, { ...chip, sms: 64, slices: 5 }, two)
        expect(ask()).toBe(before)
      }),
      { numRuns: 60 },
    )
  })
  test('loads too small to be any are none: an even arrangement, whatever came before', () => {
    const tiny = [4e-323, 0]
    const model = { ...cost, overlap: 'slice' as const, exposed: 0.3, rowTile: 16 }
    arrange([8e-323, 5.6e-92, 3], { ...chip, sms: 64, slices: 5 }, null)
    const { sms, sliceOf } = arrange(tiny, chip, model)
    for (const slice of sliceOf) expect(slice).toBeLessThan(sms.length)
    expect(new Set(sliceOf).size).toBe(2)
  })
  test('hot experts come first: each slice has only experts with no less load than the next one, and equal loads by number', () => {
    fc.assert(
      fc.property(load, (counts) => {
        // Loads too small to be any are an even one: the test above.
        fc.pre(counts.length > 2 && counts.some((n) => n > 1e-100))
        const { sliceOf } = arrange(counts, chip, cost)
        // Closer loads than this are equal.
        const level = Math.max(...counts) / 2 ** 30
        for (const [a, n] of counts.entries()) {
          for (const [b, m] of counts.entries()) {
            if (n > m + level || (n === m && a < b)) expect(sliceOf[a]).toBeLessThanOrEqual(sliceOf[b] ?? 0)
          }
        }
      }),
      { numRuns: 30 },
    )
  })
})
