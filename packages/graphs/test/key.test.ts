import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type GraphKeyParts, graphKey } from '../src/index.js'

const base: GraphKeyParts = {
  bucket: 64,
  layout: 'NVIDIA H200: hot=84 cold=48',
  strategy: 'tiered',
  assignment: null,
  dtype: 'bf16',
  topK: 8,
}
const simple = fc.oneof(fc.string(), fc.integer(), fc.boolean(), fc.constant(null))
const parts: fc.Arbitrary<GraphKeyParts> = fc
  .tuple(
    fc.record({
      bucket: fc.nat(100),
      layout: fc.option(fc.string()),
      strategy: fc.string({ minLength: 1 }),
      assignment: fc.oneof(simple, fc.array(simple, { maxLength: 4 })),
      dtype: fc.string({ minLength: 1 }),
      topK: fc.integer({ min: 1, max: 8 }),
    }),
    fc.dictionary(fc.stringMatching(/^[a-z":,]{1,4}$/), simple, { maxKeys: 2, noNullPrototype: true }),
  )
  .map(([known, extra]) => ({ ...extra, ...known }))

describe('graph keys', () => {
  test('are the same for the same parts, in whatever order', () => {
    fc.assert(
      fc.property(parts, (given) => {
        const reversed = Object.fromEntries(Object.entries(given).reverse()) as unknown as GraphKeyParts
        expect(graphKey(reversed)).toBe(graphKey(given))
      }),
    )
  })
  test('differ where any part does, whatever is in it', () => {
    fc.assert(
      fc.property(parts, parts, (a, b) => {
        const same = (x: object) => JSON.stringify(Object.entries(x).sort(([m], [n]) => (m < n ? -1 : m > n ? 1 : 0)))
        expect(graphKey(a) === graphKey(b)).toBe(same(a) === same(b))
      }),
    )
    expect(graphKey({ ...base, assignment: '1,2' })).not.toBe(graphKey({ ...base, assignment: [1, 2] }))
    expect(graphKey({ ...base, logits: true })).not.toBe(graphKey(base))
  })
  test('name the part that is wrong', () => {
    const bad = (change: object) => () => graphKey({ ...base, ...change } as GraphKeyParts)
    expect(bad({ bucket: -1 })).toThrow(/parts\.bucket/)
    expect(bad({ topK: 0 })).toThrow(/parts\.topK/)
    expect(bad({ strategy: '' })).toThrow(/parts\.strategy: expected a name, got ''/)
    expect(bad({ layout: undefined })).toThrow(/parts\.layout/)
    expect(bad({ assignment: { 0: 1 } })).toThrow(/parts\.assignment: expected a string, a finite number/)
    expect(bad({ scale: Number.NaN })).toThrow(/parts\.scale/)
    expect(() => graphKey(null as never)).toThrow(/parts: expected an object, got null/)
  })
})
