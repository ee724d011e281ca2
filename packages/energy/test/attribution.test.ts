// Modelled shares of experts: they sum to what was measured, and follow the tokens as the formula says.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { attribute, expertLoads, tokensPerJoule } from '../src/index.js'

const shape = { inputDim: 64, hiddenDim: 128, dtype: 'bf16', kind: 'gated' } as const
const measured = (joules: number, activeJoules: number | null = null) => ({ joules, activeJoules, reason: null })
const counts = fc.array(fc.integer({ min: 0, max: 5000 }), { minLength: 1, maxLength: 64 })
const some = counts.filter((list) => list.some((n) => n > 0))
const joules = fc.double({ min: 1e-3, max: 1e6, noNaN: true })

describe('expertLoads', () => {
  it('counts flops and bytes by the documented formula', () => {
    const weights = 2 * 64 * 128 + 128 * 64
    expect(expertLoads([3, 0], shape)).toEqual([
      { tokens: 3, flops: 2 * 3 * weights, bytes: 2 * (weights + 3 * 128) },
      { tokens: 0, flops: 0, bytes: 0 },
    ])
    const two = 64 * 128 + 128 * 32
    expect(expertLoads([8], { ...shape, kind: 'two-layer', outputDim: 32, dtype: 'f32' }, [2])).toEqual([
      { tokens: 8, flops: 2 * 8 * two, bytes: 4 * (2 * two + 8 * 96) },
    ])
    const [three] = expertLoads([1], { ...shape, kind: 'three-layer' })
    expect(three?.flops).toBe(2 * (64 * 128 + 128 * 128 + 128 * 64))
  })

  it('names what is wrong', () => {
    expect(() => expertLoads([1.5], shape)).toThrow(/counts\[0\]/)
    expect(() => expertLoads([-1], shape)).toThrow(RangeError)
    expect(() => expertLoads([1], { ...shape, inputDim: 0 })).toThrow(/shape\.inputDim/)
    expect(() => expertLoads([1], { ...shape, hidden: 3 } as never)).toThrow(/unknown option 'hidden'/)
    expect(() => expertLoads([1, 2], shape, [1])).toThrow(/steps: expected 2/)
    expect(() => expertLoads([1], shape, [2])).toThrow(/steps\[0\]/)
    expect(() => expertLoads([5], shape, [0])).toThrow(/steps\[0\]/)
  })
})

describe('attribute', () => {
  it('parts sum to what was measured; shares to 1; an expert without tokens has none', () => {
    fc.assert(
      fc.property(some, joules, (list, total) => {
        const a = attribute(expertLoads(list, shape), measured(total))
        const sum = a.experts.reduce((s, e) => s + (e.joules ?? Number.NaN), 0)
        expect(Math.abs(sum / total - 1)).toBeLessThan(1e-12)
        expect(a.experts.reduce((s, e) => s + e.share, 0)).toBeCloseTo(1, 12)
        for (const e of a.experts) expect(e.share > 0).toBe((list[e.expert] ?? 0) > 0)
        expect(a).toMatchObject({ basis: 'total', measuredJoules: total, unattributedJoules: 0, reason: null })
      }),
    )
  })

  it("doubling an expert's tokens moves its share as predicted", () => {
    fc.assert(
      fc.property(some, fc.nat(), joules, (list, pick, total) => {
        const candidates = list.flatMap((n, e) => (n > 0 ? [e] : []))
        const e = candidates[pick % candidates.length] ?? 0
        const n = list[e] ?? 0
        const doubled = list.map((v, i) => (i === e ? 2 * v : v))
        // By hand, from the prices: nothing of the implementation.
        const weights = 3 * 64 * 128
        const price = (tokens: number): number =>
          tokens === 0 ? 0 : 2 * (weights + tokens * 128) * 1.16e-10 + 2 * tokens * weights * 9e-13
        const others = list.reduce((s, v, i) => s + (i === e ? 0 : price(v)), 0)
        const before = attribute(expertLoads(list, shape), measured(total)).experts[e]
        const after = attribute(expertLoads(doubled, shape), measured(total)).experts[e]
        expect(before?.share).toBeCloseTo(price(n) / (others + price(n)), 12)
        expect(after?.share).toBeCloseTo(price(2 * n) / (others + price(2 * n)), 12)
        expect(after?.share ?? 0).toBeGreaterThanOrEqual(before?.share ?? 1)
        // Less than double: the weights were read anyway.
        expect(after?.modelledJoules ?? 0).toBeLessThan(2 * (before?.modelledJoules ?? 0))
      }),
    )
  })

  it('reports how far the model was off before rescaling', () => {
    const loads = expertLoads([10, 20], shape)
    const a = attribute(loads, measured(10), { joulesPerByte: 1e-5, joulesPerFlop: 0 })
    const model = loads.reduce((s, l) => s + l.bytes * 1e-5, 0)
    expect(a.modelledJoules).toBeCloseTo(model, 12)
    expect(a.residualJoules).toBeCloseTo(10 - model, 12)
    expect(a.residualShare).toBeCloseTo((10 - model) / 10, 12)
  })

  it('shares out the active part where the idle part is known', () => {
    const a = attribute(expertLoads([1, 1], shape), measured(10, 4))
    expect(a).toMatchObject({ basis: 'active', measuredJoules: 4 })
    expect(a.experts.map((e) => e.joules)).toEqual([2, 2])
  })

  it('without an energy the shares are there and the joules are null, with the reason', () => {
    const a = attribute(expertLoads([1, 3], shape), { joules: null, activeJoules: null, reason: 'refused' })
    expect(a).toMatchObject({ measuredJoules: null, residualJoules: null, reason: 'refused' })
    expect(a.experts.every((e) => e.joules === null && e.share > 0)).toBe(true)
  })

  it('where no expert had work, nothing is given to any', () => {
    const a = attribute(expertLoads([0, 0], shape), measured(10))
    expect(a).toMatchObject({ unattributedJoules: 10, modelledJoules: 0 })
    expect(a.experts.map((e) => [e.share, e.joules])).toEqual([
      [0, 0],
      [0, 0],
    ])
    expect(attribute([], measured(1))).toMatchObject({ experts: [], unattributedJoules: 1 })
  })

  it('names what is wrong', () => {
    expect(() => attribute([], measured(1), { joulesPerByte: -1 })).toThrow(/joulesPerByte/)
    expect(() => attribute([{ tokens: 1, bytes: Number.NaN, flops: 1 }], measured(1))).toThrow(/loads\[0\]\.bytes/)
    expect(() => attribute([], measured(1), { perByte: 1 } as never)).toThrow(/unknown option/)
  })
})

describe('tokensPerJoule', () => {
  it('divides, and is null where there is nothing to divide by', () => {
    expect(tokensPerJoule(100, { joules: 4 })).toBe(25)
    expect(tokensPerJoule(100, { joules: null })).toBeNull()
    expect(tokensPerJoule(100, { joules: 0 })).toBeNull()
    expect(() => tokensPerJoule(-1, { joules: 1 })).toThrow(/tokens/)
  })
})
