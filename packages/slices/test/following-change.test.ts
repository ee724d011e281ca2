/**
 * What policies are worth by the clock of an H200's kernels, on seeds that nothing was tuned on: the defaults of the policies, the forecaster and the
 * traces were fixed on seeds from 1000 on. Makespans are compared on the same trace, seed by seed; the ends of 95 % confidence intervals are what
 * has to hold.
 */
import { describe, expect, test } from 'vitest'
import { policies, tileCost } from '../src/index.js'
import { type Comparison, compare, type Estimate, ratio, type TraceKind } from '../src/simulator.js'
import { h200Tiles } from './support/h200-tiles.js'

const seeds = Array.from({ length: 20 }, (_, i) => 9001 + i)
const high = ({ mean, halfWidth }: Estimate) => mean + (halfWidth ?? Number.NaN)

function run(kind: TraceKind): Record<'static' | 'dynamic' | 'proportional' | 'adaptive', Comparison> {
  const list = [policies.static(), policies.dynamic(), policies.proportional(), policies.adaptive()]
  const [first, second, third, fourth] = compare({
    policies: list,
    traces: [kind],
    seeds,
    trace: { numExperts: 64, assignments: 32768 },
    simulate: { cost: tileCost(h200Tiles), clock: h200Tiles, oracle: false },
  })
  if (!first || !second || !third || !fourth) throw new Error('no results')
  return { static: first, dynamic: second, proportional: third, adaptive: fourth }
}

describe('where the load moves, looking ahead pays: adaptive ≤ 0.98 × proportional ≤ static', () => {
  test.each(['periodic', 'gradual'] as const)(
    '%s',
    (kind) => {
      const result = run(kind)
      expect(high(ratio(result.adaptive, result.proportional))).toBeLessThanOrEqual(0.98)
      expect(high(ratio(result.proportional, result.static))).toBeLessThanOrEqual(1)
    },
    120_000,
  )
})

describe('where there is nothing to follow, following costs nothing: no policy over 1.01 × the best', () => {
  test.each(['stationary', 'flash-crowd'] as const)(
    '%s',
    (kind) => {
      const result = Object.values(run(kind))
      const total = ({ makespansUs }: Comparison) => makespansUs.reduce((sum, us) => sum + us, 0)
      const best = result.reduce((a, b) => (total(b) < total(a) ? b : a))
      for (const each of result) expect(high(ratio(each, best)), each.policy).toBeLessThanOrEqual(1.01)
    },
    120_000,
  )
})
