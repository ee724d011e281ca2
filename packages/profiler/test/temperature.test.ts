import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ExpertProfiler, type Temperature } from '../src/index.js'
import { Classifier, classify } from '../src/temperature.js'

const rule = { hotShare: 0.5, coldShare: 0.1, contrast: 1.25, hysteresis: 0.05 }
const none: Temperature[] = []

describe('temperature by cumulative share', () => {
  test('the few that carry half of the load are hot, the tail of a tenth is cold', () => {
    expect(classify([40, 30, 20, 6, 4, 0], none, rule)).toEqual(['hot', 'warm', 'warm', 'cold', 'cold', 'cold'])
  })
  test('an even load has no hot and no cold expert, whatever the order of the numbers', () => {
    expect(new Set(classify(new Array(64).fill(100), none, rule))).toEqual(new Set(['warm']))
  })
  test('one expert with everything is hot, the others are cold', () => {
    expect(classify([0, 900, 0], none, rule)).toEqual(['cold', 'hot', 'cold'])
  })
  test('a single expert is warm: there is nothing to compare it with', () => {
    expect(classify([10], none, rule)).toEqual(['warm'])
  })
  test('equal counts: the lower number is ranked first', () => {
    const temperatures = classify([30, 30, 30, 5, 5], none, { ...rule, hotShare: 0.4 })
    expect(temperatures.slice(0, 3)).toEqual(['hot', 'warm', 'warm'])
  })
  test('is monotone: no expert is hotter than one with more assignments', () => {
    const heat = { cold: 0, warm: 1, hot: 2, unknown: -1 }
    fc.assert(
      fc.property(fc.array(fc.nat(1000), { minLength: 1, maxLength: 50 }), (counts) => {
        fc.pre(counts.some((n) => n > 0))
        const temperatures = classify(counts, none, rule)
        for (const [i, a] of counts.entries()) {
          for (const [j, b] of counts.entries()) {
            if (a > b)
              expect(heat[temperatures[i] ?? 'unknown']).toBeGreaterThanOrEqual(heat[temperatures[j] ?? 'unknown'])
          }
        }
      }),
    )
  })
  test('classifying the same counts again changes nothing', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(1000), { minLength: 1, maxLength: 50 }), (counts) => {
        fc.pre(counts.some((n) => n > 0))
        const once = classify(counts, none, rule)
        expect(classify(counts, once, rule)).toEqual(once)
      }),
    )
  })
})

describe('hysteresis', () => {
  test('an expert just past the boundary keeps the temperature that it had', () => {
    // Position of expert 1: 0.35 + 0.32 / 2 = 0.51, past hotShare by less than the hysteresis.
    const edge = [35, 32, 23, 10]
    expect(classify(edge, none, rule)[1]).toBe('warm')
    expect(classify(edge, ['hot', 'hot', 'warm', 'warm'], rule)[1]).toBe('hot')
    expect(classify(edge, ['hot', 'hot', 'warm', 'warm'], { ...rule, hysteresis: 0 })[1]).toBe('warm')
  })
  test('an expert well past the boundary loses it', () => {
    expect(classify([60, 30, 5, 5], ['hot', 'hot', 'cold', 'cold'], rule)[1]).toBe('warm')
  })
})

describe('the minimum sample', () => {
  test("every expert is 'unknown' before the window holds enough assignments", () => {
    const profiler = new ExpertProfiler({ numExperts: 2, minAssignments: 100 })
    profiler.record({ counts: [90, 9] })
    expect(profiler.temperatures()).toEqual(['unknown', 'unknown'])
    profiler.record({ counts: [1, 0] })
    expect(profiler.temperatures()).toEqual(['hot', 'cold'])
  })
  test('is lost again when the window runs dry', () => {
    const profiler = new ExpertProfiler({ numExperts: 2, windowSteps: 2, minAssignments: 10 })
    profiler.record({ counts: [10, 0] })
    expect(profiler.temperatures()).toEqual(['hot', 'cold'])
    profiler.record({ counts: [0, 0] })
    profiler.record({ counts: [0, 0] })
    expect(profiler.temperatures()).toEqual(['unknown', 'unknown'])
  })
  test('is 32 assignments per expert unless told otherwise', () => {
    expect(new ExpertProfiler({ numExperts: 7 }).options.minAssignments).toBe(224)
  })
})

describe('classifying step after step', () => {
  test('is what sorting from nothing gives, however far the counts move', () => {
    const counts = fc.array(fc.oneof(fc.nat(20), fc.nat(100000)), { minLength: 60, maxLength: 60 })
    fc.assert(
      fc.property(fc.array(counts, { minLength: 1, maxLength: 8 }), (steps) => {
        const classifier = new Classifier(60)
        const now = new Array<Temperature>(60).fill('unknown')
        let expected: Temperature[] = now.slice()
        for (const step of steps) {
          fc.pre(step.some((n) => n > 0))
          expected = byDefinition(step, expected)
          classifier.classify(Float64Array.from(step), now, rule)
          expect(now).toEqual(expected)
        }
      }),
    )
  })
})

/** The rule of the module's opening lines, written down as it is. */
function byDefinition(counts: readonly number[], before: readonly Temperature[]): Temperature[] {
  const total = counts.reduce((sum, n) => sum + n, 0)
  const ranked = counts.map((_, e) => e).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b)
  const result = before.slice()
  let cumulative = 0
  for (const [rank, e] of ranked.entries()) {
    const share = (counts[e] ?? 0) / total
    const position = rank === 0 ? 0 : cumulative + share / 2
    cumulative += share
    const [hot, cold] = [before[e] === 'hot' ? rule.hysteresis : 0, before[e] === 'cold' ? rule.hysteresis : 0]
    const level = share * counts.length
    if (position <= rule.hotShare + hot && level >= rule.contrast * (1 - hot)) result[e] = 'hot'
    else if (position >= 1 - (rule.coldShare + cold) && level <= (1 + cold) / rule.contrast) result[e] = 'cold'
    else result[e] = 'warm'
  }
  return result
}
