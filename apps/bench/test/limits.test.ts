import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { inputCount, limitUs, weightCopies } from '../src/limits.js'
import { median } from '../src/median.js'
import { cellLogits, normals } from '../src/random.js'
import { parseShape, shapes } from '../src/shapes.js'

interface AnchorRow {
  shape: string
  tokens: number
  expertsHit: number
  limitUs: number
}
const anchors = JSON.parse(readFileSync(new URL('../peers/anchors-h200.json', import.meta.url), 'utf8')) as {
  rows: AnchorRow[]
}

describe('limits', () => {
  test('agree with every row of the recorded anchors', () => {
    const known = anchors.rows.filter((r) => shapes.some((s) => s.name === r.shape))
    expect(known.length).toBeGreaterThan(20)
    for (const row of known) {
      const limit = limitUs(parseShape(row.shape), row.tokens, row.expertsHit)
      // The anchors round expertsHit to one decimal.
      expect(Math.abs(limit / row.limitUs - 1), `${row.shape} ${row.tokens}`).toBeLessThan(0.01)
    }
  })
  test('small models are copied beyond the cache, large ones are not', () => {
    expect(weightCopies(parseShape('mixtral-8x7b'))).toBe(1)
    expect(weightCopies(parseShape('seed-small'))).toBeGreaterThan(1)
    expect(inputCount(parseShape('qwen3-30b-a3b'), 1)).toBeGreaterThan(1)
  })
})

describe('shapes', () => {
  test('a shape of one’s own', () => {
    expect(parseShape('mine:128:64:4:2')).toEqual({ name: 'mine', hidden: 128, inter: 64, experts: 4, topK: 2 })
  })
  test('a wrong one is refused by what was given', () => {
    expect(() => parseShape('mine:128:64')).toThrow(/'mine:128:64'/)
    expect(() => parseShape('mine:128:64:0:2')).toThrow(RangeError)
  })
})

describe('logits', () => {
  test('are seeded and of unit scale', () => {
    const a = normals(20001, 5)
    expect(normals(20001, 5)).toEqual(a)
    const mean = a.reduce((s, v) => s + v, 0) / a.length
    const variance = a.reduce((s, v) => s + v * v, 0) / a.length
    expect(Math.abs(mean)).toBeLessThan(0.05)
    expect(Math.abs(variance - 1)).toBeLessThan(0.05)
  })
  test('a skew is one bias per expert, the same for every input', () => {
    const [plain] = cellLogits(4, 3, 1, 0, 9)
    const [skewed] = cellLogits(4, 3, 1, 2, 9)
    const bias = Array.from({ length: 12 }, (_, i) => (skewed?.[i] ?? 0) - (plain?.[i] ?? 0))
    for (let i = 3; i < 12; i++) expect(bias[i]).toBeCloseTo(bias[i % 3] ?? 0, 4)
  })
})

test('median', () => {
  expect(median([3, 1, 2])).toBe(2)
  expect(median([4, 1, 2, 3])).toBe(2.5)
})
