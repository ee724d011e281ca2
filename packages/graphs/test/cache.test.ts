// The cache, with graphs that are counted and no device.
import { DeviceError, DisposedError, GraphCaptureError, OutOfMemoryError, UnsupportedError } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { type CapturePolicy, CapturePolicyError, capturePolicies, GraphCache, type GraphStep } from '../src/index.js'
import { FakeGraph, Steps } from './support/steps.js'

const always = { policy: capturePolicies.always() }

describe('a key', () => {
  test('is eager until the policy wants a graph, then recorded once, then replayed', () => {
    const cache = new GraphCache<FakeGraph>()
    const steps = new Steps()
    const modes = Array.from({ length: 6 }, () => cache.run('a', steps.step()).mode)
    expect(modes).toEqual(['eager', 'eager', 'eager', 'graph', 'graph', 'graph'])
    expect(steps).toMatchObject({ eager: 3, captures: 1, replays: 3 })
    expect(cache.stats()).toMatchObject({ graphs: 1, hits: 2, misses: 4, captures: 1, captureMs: 2, bytes: 100 })
  })
  test('is eager once whatever the policy says: the first step sets up what a capture must not', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    expect(cache.run('a', steps.step())).toMatchObject({ mode: 'eager', reason: expect.stringMatching(/^warm-up/) })
    expect(cache.run('a', steps.step())).toMatchObject({ mode: 'graph', reason: 'recorded now' })
    expect(cache.run('a', steps.step())).toMatchObject({ mode: 'graph', reason: 'by its graph' })
  })
  test('whose first step throws is still cold', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    const failing = { ...steps.step(), eager: (): number => fail('no memory') }
    expect(() => cache.run('a', failing)).toThrow('no memory')
    expect(cache.run('a', steps.step()).mode).toBe('eager')
    expect(cache.run('a', steps.step()).mode).toBe('graph')
  })
  test('gives the value of what ran', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const step = (value: string): GraphStep<FakeGraph, string> => ({
      eager: () => `${value} eagerly`,
      capture: () => new FakeGraph(1),
      replay: () => `${value} by graph`,
    })
    expect(cache.run('a', step('x')).value).toBe('x eagerly')
    expect(cache.run('a', step('y')).value).toBe('y by graph')
  })
  test('never has a graph when the policy is never', () => {
    const cache = new GraphCache<FakeGraph>({ policy: capturePolicies.never() })
    const steps = new Steps()
    for (let i = 0; i < 20; i++) {
      expect(cache.run('a', steps.step())).toMatchObject({ mode: 'eager' })
    }
    expect(cache.run('a', steps.step()).reason).toBe("eager: policy 'never'")
    expect(steps.captures).toBe(0)
  })
})

describe('the memory budget', () => {
  test('drops what was used longest ago', () => {
    const cache = new GraphCache<FakeGraph>({ ...always, memoryBudgetBytes: 250 })
    const steps = new Steps()
    for (const key of ['a', 'b']) for (let i = 0; i < 2; i++) cache.run(key, steps.step())
    cache.run('a', steps.step())
    for (let i = 0; i < 2; i++) cache.run('c', steps.step())
    expect(['a', 'b', 'c'].map((key) => cache.has(key))).toEqual([true, false, true])
    expect(cache.stats()).toMatchObject({ graphs: 2, bytes: 200, evictions: 1 })
    expect(steps.graphs.map(({ disposals }) => disposals)).toEqual([0, 1, 0])
  })
  test('and the number of graphs as well', () => {
    const cache = new GraphCache<FakeGraph>({ ...always, maxGraphs: 2 })
    const steps = new Steps()
    for (const key of ['a', 'b', 'c']) for (let i = 0; i < 2; i++) cache.run(key, steps.step())
    expect(['a', 'b', 'c'].map((key) => cache.has(key))).toEqual([false, true, true])
  })
  test('an evicted key starts to count again', () => {
    const cache = new GraphCache<FakeGraph>({ memoryBudgetBytes: 100 })
    const steps = new Steps()
    for (const key of ['a', 'b']) for (let i = 0; i < 4; i++) cache.run(key, steps.step())
    const modes = Array.from({ length: 4 }, () => cache.run('a', steps.step()).mode)
    expect(modes).toEqual(['eager', 'eager', 'eager', 'graph'])
  })
  test('refuses a graph that is larger than all of it, says so, and never records it again', () => {
    const cache = new GraphCache<FakeGraph>({ ...always, memoryBudgetBytes: 50 })
    const steps = new Steps()
    for (let i = 0; i < 1000; i++) {
      expect(cache.run('a', steps.step()).mode).toBe('eager')
    }
    expect(cache.run('a', steps.step()).reason).toBe('a graph of 100 bytes does not fit: 50 are allowed')
    expect(steps.captures).toBe(1)
    expect(steps.graphs.map(({ disposals }) => disposals)).toEqual([1])
    expect(cache.stats()).toMatchObject({ bytes: 0, fallbacks: { 'over-budget': 1000 } })
  })
  test('an estimate that does not fit says so, and is tried again: it may have been the memory of others', () => {
    const cache = new GraphCache<FakeGraph>({ ...always, memoryBudgetBytes: 50 })
    const steps = new Steps()
    cache.run('a', steps.step())
    const estimated = { ...steps.step(), capture: () => new FakeGraph(100, true) }
    expect(cache.run('a', estimated).reason).toBe(
      'a graph of 100 bytes (an estimate: others allocated meanwhile) does not fit: 50 are allowed',
    )
    expect(cache.stats()).toMatchObject({ captures: 1, estimated: 1, graphs: 0 })
    for (let i = 1; i < 16; i++) expect(cache.run('a', steps.step(20)).mode).toBe('eager')
    expect(cache.run('a', steps.step(20)).mode).toBe('graph')
    expect(cache.stats()).toMatchObject({ captures: 2, estimated: 1, graphs: 1, bytes: 20 })
  })
  test('never drops the graph in use, not even for the one that wants its place', () => {
    const cache = new GraphCache<FakeGraph>({ ...always, memoryBudgetBytes: 150 })
    const steps = new Steps()
    for (let i = 0; i < 2; i++) cache.run('a', steps.step())
    const [used] = steps.graphs
    cache.run('a', {
      ...steps.step(),
      replay: () => {
        for (let i = 0; i < 3; i++) cache.run('b', steps.step())
        expect(used?.disposals).toBe(0)
        expect(cache.stats().lastFallback).toMatch(/does not fit: 150 are allowed, and what is there is in use/)
        return 0
      },
    })
    expect(cache.has('a')).toBe(true)
    expect(cache.has('b')).toBe(false)
  })
  test('what is evicted by hand while in use goes when the replay has returned', () => {
    for (const how of ['evict', 'clear', 'dispose'] as const) {
      const cache = new GraphCache<FakeGraph>(always)
      const steps = new Steps()
      for (let i = 0; i < 2; i++) cache.run('a', steps.step())
      const [used] = steps.graphs
      const replay = () => {
        cache[how]('a')
        expect(used?.disposals).toBe(0)
        return 0
      }
      cache.run('a', { ...steps.step(), replay })
      expect(used?.disposals, how).toBe(1)
      expect(cache.stats()).toMatchObject({ graphs: 0, bytes: 0 })
    }
  })
})

describe('a capture that fails', () => {
  test.each([
    ['capture-failed', new GraphCaptureError('it synchronised')],
    ['out-of-memory', new OutOfMemoryError('no memory', { requested: 10, free: 1 })],
    ['unsupported', new UnsupportedError('no graphs here')],
  ] as const)('%s: the step is eager, with its reason, counted', (reason, error) => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    const failing = { ...steps.step(), capture: () => fail(error) }
    cache.run('a', failing)
    expect(cache.run('a', failing)).toMatchObject({ mode: 'eager', reason: `capture failed: ${error.message}` })
    expect(cache.stats()).toMatchObject({
      captures: 0,
      fallbacks: { [reason]: 1 },
      lastFallback: `capture failed: ${error.message}`,
    })
  })
  test('is tried again after 16, 32, 64, … steps', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    const tries: number[] = []
    let step = 0
    const failing = {
      ...steps.step(),
      capture: () => {
        tries.push(step)
        return fail(new GraphCaptureError('no'))
      },
    }
    for (; step < 500; step++) cache.run('a', failing)
    expect(tries).toEqual([1, 17, 49, 113, 241, 497])
    expect(cache.stats().fallbacks['capture-failed']).toBe(499)
    while (cache.run('a', steps.step()).mode === 'eager' && step < 5000) step++
    expect(step).toBe(497 + 512)
    expect(cache.has('a')).toBe(true)
  })
  test('with anything else, throws it and leaves the cache usable', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    cache.run('a', steps.step())
    const broken = { ...steps.step(), capture: () => fail(new DeviceError('gone')) }
    expect(() => cache.run('a', broken)).toThrow(DeviceError)
    expect(cache.run('a', steps.step()).mode).toBe('graph')
  })
  test('by returning no graph is a TypeError, and what it returned is disposed of if it can be', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    cache.run('a', steps.step())
    const returning = (graph: unknown) => () => cache.run('a', { ...steps.step(), capture: () => graph as FakeGraph })
    expect(returning(undefined)).toThrow(/step\.capture: expected a graph \(bytes, captureMs, dispose\), got undefined/)
    expect(returning(Promise.resolve(new FakeGraph(1)))).toThrow(TypeError)
    const odd = new FakeGraph(Number.NaN)
    expect(returning(odd)).toThrow(/the bytes of what step\.capture returned/)
    expect(odd.disposals).toBe(1)
  })
  test('from within itself is eager: nothing waits for its own capture', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    cache.run('a', steps.step())
    const inner: string[] = []
    cache.run('a', {
      ...steps.step(),
      capture: () => {
        inner.push(cache.run('a', steps.step()).reason)
        return steps.step().capture()
      },
    })
    expect(inner).toEqual(['a capture of the same step is on the way'])
    expect(cache.has('a')).toBe(true)
  })
})

describe('a policy', () => {
  const question = { key: 'a', uses: 1, bytesInUse: 0, budgetBytes: 1, estimateBytes: null }
  test('is told what there is to know', () => {
    const seen: unknown[] = []
    const policy: CapturePolicy = {
      name: 'curious',
      shouldCapture: (asked) => {
        seen.push(asked)
        return asked.uses >= 2
      },
    }
    const cache = new GraphCache<FakeGraph>({ policy, memoryBudgetBytes: 1000 })
    const steps = new Steps()
    for (let i = 0; i < 3; i++) cache.run('a', steps.step())
    for (let i = 0; i < 2; i++) cache.run('b', steps.step())
    const known = { bytesInUse: 100, budgetBytes: 1000, estimateBytes: 100 }
    expect(seen).toEqual([
      { ...question, budgetBytes: 1000 },
      { ...question, budgetBytes: 1000, uses: 2 },
      { key: 'b', uses: 1, ...known },
    ])
  })
  test.each([
    ['throws', () => fail('I do not know'), /policy 'mine' threw: I do not know/],
    ['answers nonsense', () => 'perhaps', /policy 'mine': expected true or false, got 'perhaps'/],
    ['answers later', async () => true, /expected true or false, got an instance of Promise/],
  ])('that %s is a CapturePolicyError before anything was done', (_, shouldCapture, message) => {
    const policy = { name: 'mine', shouldCapture } as unknown as CapturePolicy
    const cache = new GraphCache<FakeGraph>({ policy })
    const steps = new Steps()
    cache.run('a', steps.step())
    const before = [cache.stats(), { ...steps }]
    let caught: unknown
    try {
      cache.run('a', steps.step())
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(CapturePolicyError)
    expect(caught).toMatchObject({ code: 'ERR_NEXUS_GRAPH_CAPTURE', message: expect.stringMatching(message) })
    expect([cache.stats(), { ...steps }]).toEqual(before)
  })
  test('that clears the cache while it is asked loses no graph', () => {
    const cleared: CapturePolicy = {
      name: 'clears',
      shouldCapture: () => {
        cache.clear()
        return true
      },
    }
    const cache = new GraphCache<FakeGraph>({ policy: cleared })
    const steps = new Steps()
    for (let i = 0; i < 4; i++) expect(cache.run('a', steps.step()).mode).toBe('eager')
    expect(steps.captures).toBe(0)
  })
  test('that is none is refused by name', () => {
    expect(() => new GraphCache({ policy: {} as CapturePolicy })).toThrow(/options\.policy: expected a CapturePolicy/)
    expect(() => capturePolicies.after(0)).toThrow(/uses/)
  })
})

test('padding waste is the part of the launches that no token used', () => {
  const cache = new GraphCache<FakeGraph>(always)
  const steps = new Steps()
  expect(cache.stats().paddingWaste).toBeNull()
  // The eager one pads nothing.
  for (const tokens of [50, 48, 64, 0]) cache.run('a', { ...steps.step(), tokens, bucket: 64 })
  expect(cache.stats()).toMatchObject({ tokens: 112, paddedTokens: 192, paddingWaste: 1 - 112 / 192 })
  expect(() => cache.run('a', { ...steps.step(), tokens: 65, bucket: 64 })).toThrow(
    /step\.tokens: expected 0 to step\.bucket \(64\), got 65/,
  )
  expect(() => cache.run('b', { ...steps.step(), tokens: 5 })).toThrow(/step\.bucket \(undefined\)/)
  expect(cache.stats()).toMatchObject({ hits: 2, misses: 2, tokens: 112 })
})

describe('after dispose', () => {
  test('every graph is gone, and use throws', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    for (const key of ['a', 'b']) for (let i = 0; i < 2; i++) cache.run(key, steps.step())
    cache.dispose()
    cache.dispose()
    expect(steps.graphs.map(({ disposals }) => disposals)).toEqual([1, 1])
    expect(() => cache.run('a', steps.step())).toThrow(DisposedError)
    expect(cache.stats()).toMatchObject({ graphs: 0, bytes: 0 })
  })
  test('a capture that ends too late is disposed of', () => {
    const cache = new GraphCache<FakeGraph>(always)
    const steps = new Steps()
    cache.run('a', steps.step())
    const step = {
      ...steps.step(),
      capture: () => {
        cache.dispose()
        return steps.step().capture()
      },
    }
    expect(() => cache.run('a', step)).toThrow(DisposedError)
    expect(steps.graphs.map(({ disposals }) => disposals)).toEqual([1])
  })
})

test('a graph whose dispose throws does not keep the others', () => {
  const cache = new GraphCache<FakeGraph>(always)
  const steps = new Steps()
  for (const key of ['a', 'b', 'c']) for (let i = 0; i < 2; i++) cache.run(key, steps.step())
  const [first] = steps.graphs
  if (first) first.dispose = () => fail('stuck')
  expect(() => cache.clear()).toThrow('stuck')
  expect(steps.graphs.slice(1).map(({ disposals }) => disposals)).toEqual([1, 1])
  expect(cache.stats()).toMatchObject({ graphs: 0, bytes: 0 })
})

test('wrong arguments are refused by name', () => {
  const cache = new GraphCache<FakeGraph>()
  const step = new Steps().step()
  expect(() => cache.run('', step)).toThrow(/key: expected a string, got ''/)
  expect(() => cache.run(3 as never, step)).toThrow(TypeError)
  expect(() => cache.run('a', null as never)).toThrow(/step: expected an object, got null/)
  expect(() => cache.run('a', { ...step, replay: 1 } as never)).toThrow(/step\.replay: expected a function, got 1/)
  expect(() => new GraphCache({ budget: 1 } as never)).toThrow(/unknown option 'budget'/)
  expect(() => new GraphCache({ memoryBudgetBytes: -1 })).toThrow(/options\.memoryBudgetBytes/)
  expect(() => new GraphCache({ maxGraphs: 0 })).toThrow(/options\.maxGraphs/)
})

function fail(error: unknown): never {
  throw typeof error === 'string' ? new Error(error) : error
}
