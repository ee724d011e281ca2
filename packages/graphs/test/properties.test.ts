// Whatever happens, in whatever order: what always holds of a cache.
import { GraphCaptureError } from '@nexus/native'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { capturePolicies, GraphCache } from '../src/index.js'
import { type FakeGraph, Steps } from './support/steps.js'

interface Action {
  readonly what: 'run' | 'fail' | 'nested' | 'evict' | 'clear'
  readonly key: number
  readonly other: number
  readonly bytes: number
}
const action: fc.Arbitrary<Action> = fc.record({
  what: fc.oneof(
    { weight: 12, arbitrary: fc.constant('run' as const) },
    { weight: 2, arbitrary: fc.constant('fail' as const) },
    { weight: 3, arbitrary: fc.constant('nested' as const) },
    { weight: 1, arbitrary: fc.constantFrom('evict' as const, 'clear' as const) },
  ),
  key: fc.nat(7),
  other: fc.nat(7),
  bytes: fc.nat(200),
})

test('the budget holds, hits and misses are all runs, graphs end exactly once and never in use', () => {
  fc.assert(
    fc.property(
      fc.array(action, { maxLength: 120 }),
      fc.nat(400),
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 1, max: 3 }),
      (actions, memoryBudgetBytes, maxGraphs, uses) => {
        const policy = capturePolicies.after(uses)
        const cache = new GraphCache<FakeGraph>({ memoryBudgetBytes, maxGraphs, policy })
        const steps = new Steps()
        let runs = 0
        const run = (key: number, bytes: number, within?: (graph: FakeGraph) => void) => {
          runs++
          const step = steps.step(bytes)
          const replay = (graph: FakeGraph) => {
            within?.(graph)
            expect(graph.disposals, 'disposals while in use').toBe(0)
            return step.replay(graph)
          }
          cache.run(`${key}`, { ...step, replay })
          const { graphs, bytes: held } = cache.stats()
          expect(held).toBeLessThanOrEqual(memoryBudgetBytes)
          expect(graphs).toBeLessThanOrEqual(maxGraphs)
        }
        for (const { what, key, other, bytes } of actions) {
          if (what === 'run') run(key, bytes)
          else if (what === 'nested') {
            run(key, bytes, () => {
              run(other, bytes)
              cache.evict(`${key}`)
            })
          } else if (what === 'evict') cache.evict(`${key}`)
          else if (what === 'clear') cache.clear()
          else {
            runs++
            const capture = (): never => {
              throw new GraphCaptureError('not now')
            }
            cache.run(`${key}`, { ...steps.step(), capture })
          }
          const stats = cache.stats()
          expect(stats.hits + stats.misses).toBe(runs)
          const live = steps.graphs.filter(({ disposals }) => disposals === 0)
          expect(stats.graphs).toBe(live.length)
          expect(stats.bytes).toBe(live.reduce((sum, graph) => sum + graph.bytes, 0))
          expect(stats.captures).toBe(steps.captures)
          expect(steps.eager + steps.replays).toBe(runs)
        }
        cache.dispose()
        expect(steps.graphs.every(({ disposals }) => disposals === 1)).toBe(true)
        expect(cache.stats()).toMatchObject({ graphs: 0, bytes: 0 })
      },
    ),
    { numRuns: 500 },
  )
})

test('keys without a graph are remembered up to a limit', () => {
  const cache = new GraphCache<FakeGraph>()
  const steps = new Steps()
  for (let i = 0; i < 3; i++) cache.run('first', steps.step())
  for (let i = 0; i < 5000; i++) cache.run(`key ${i}`, steps.step())
  expect(cache.run('first', steps.step()).reason).toMatch(/^warm-up/)
  for (let i = 0; i < 3; i++) cache.run('first', steps.step())
  expect(cache.has('first')).toBe(true)
})
