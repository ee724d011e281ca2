import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemInfo } from '@nexus/core'
import { policies } from '@nexus/slices'
import { simulate } from '@nexus/slices/simulator'
import { afterAll, describe, expect, test } from 'vitest'
import { tracesFolder } from '../src/paths.js'
import { learnRouter } from '../src/recording/clusters.js'
import { pixels, readDigits } from '../src/recording/digits.js'
import { type Batch, batches, type Drift, drifts } from '../src/recording/drift.js'
import { readTrace, readTraces, traceOf, traceText } from '../src/recording/trace-file.js'
import { writeWhole } from '../src/result-file.js'
import { recordTrace, shippedTraces } from '../src/scheduling/record.js'

const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-test-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const digits = readDigits()
const shipped = readTraces(tracesFolder)
const take = (drift: Drift, steps: number, seed = 1, tokens = 512): Batch[] => {
  const all: Batch[] = []
  for (const batch of batches(drift, digits.route, tokens, seed)) {
    all.push(batch)
    if (all.length === steps) break
  }
  return all
}

describe('the shipped traces', () => {
  test('are all there, and small', () => {
    expect(shipped.map(({ name }) => name).sort()).toEqual(
      shippedTraces.map(({ source, drift }) => `${source}-${drift}`).sort(),
    )
    const bytes = readdirSync(tracesFolder).map((name) => statSync(join(tracesFolder, name)).size)
    expect(bytes.reduce((sum, n) => sum + n, 0)).toBeLessThan(1.5e6)
  })
  test('have at least 1024 steps, and say what they are', () => {
    for (const trace of shipped) {
      expect(trace.counts.length).toBeGreaterThanOrEqual(1024)
      expect(trace.data).toContain('digits')
      expect(trace.layer).toContain('MoELayer')
      expect(trace.drift.length).toBeGreaterThan(20)
      expect(JSON.stringify(trace)).not.toMatch(/"\/|\\\\/)
    }
  })
  test('replay in the simulator', () => {
    const [trace] = shipped
    if (!trace) throw new Error('no traces')
    const { regret, steps } = simulate(policies.adaptive(), traceOf(trace))
    expect(steps).toBe(trace.counts.length - 256)
    expect(regret).toBeGreaterThan(0)
    expect(regret).toBeLessThan(1)
  })
  test.skipIf(noAddon).each(shipped)(
    '$name is recorded again, count by count',
    async (trace) => {
      const again = await recordTrace({ ...trace.options, steps: 40, device: 'cpu', onProgress: () => {} })
      expect(again.counts).toEqual(trace.counts.slice(0, 40))
      expect({ ...again, counts: [], device: '' }).toEqual({ ...trace, counts: [], device: '' })
      const other = {
        ...trace.options,
        seed: trace.options.seed + 1,
        steps: 2,
        device: 'cpu',
        onProgress: () => {},
      } as const
      expect((await recordTrace(other)).counts).not.toEqual(trace.counts.slice(0, 2))
    },
    60_000,
  )
})

describe('drift', () => {
  // Of each class among a batch's tokens.
  const classOf = new Map(digits.route.byClass.flatMap((pool, digit) => pool.map((image) => [image, digit] as const)))
  const mixOf = (some: readonly Batch[]) => {
    const mix = new Array<number>(10).fill(0)
    let tokens = 0
    for (const { images } of some) {
      for (const image of images) {
        const digit = classOf.get(image) ?? 0
        mix[digit] = (mix[digit] ?? 0) + 1
        tokens++
      }
    }
    return mix.map((n) => n / tokens)
  }
  const distance = (a: readonly number[], b: readonly number[]) =>
    a.reduce((sum, x, c) => sum + Math.abs(x - (b[c] ?? 0)), 0) / 2

  test.each(drifts)('%s is what the seed says', (drift) => {
    expect(take(drift, 5)).toEqual(take(drift, 5))
    expect(take(drift, 5)).not.toEqual(take(drift, 5, 2))
    for (const { images } of take(drift, 5)) {
      expect(images).toHaveLength(512)
      expect(Array.from(images).every((image) => image >= 0 && image < digits.route.count)).toBe(true)
    }
  })
  test('periodic comes back after 160 steps, and is elsewhere in between', () => {
    const steps = take('periodic', 340)
    const [day, again, night] = [20, 180, 100].map((at) => mixOf(steps.slice(at, at + 40)))
    expect(distance(day ?? [], again ?? [])).toBeLessThan(0.06)
    expect(distance(day ?? [], night ?? [])).toBeGreaterThan(0.2)
  })
  test('gradual goes slowly and far', () => {
    const steps = take('gradual', 1000)
    const mix = (at: number) => mixOf(steps.slice(at, at + 20))
    expect(distance(mix(0), mix(20))).toBeLessThan(0.12)
    expect(Math.max(...[200, 400, 600, 800].map((at) => distance(mix(0), mix(at))))).toBeGreaterThan(0.2)
  })
  test('bursts are of one class', () => {
    const shares = take('bursts', 1000).map((batch) => Math.max(...mixOf([batch])))
    const high = shares.filter((share) => share > 0.5).length
    expect(high).toBeGreaterThan(100)
    expect(high).toBeLessThan(600)
  })
  test('domains turn and turn back', () => {
    const turned = take('domains', 1000).map((batch) => batch.turned)
    const changes = turned.filter((now, i) => i > 0 && now !== turned[i - 1]).length
    expect(changes).toBeGreaterThanOrEqual(3)
    expect(changes).toBeLessThan(10)
  })
  test('flash crowds are one image for a few steps', () => {
    const crowded = take('flash-crowd', 1000).map(({ images }) => {
      const seen = new Map<number, number>()
      for (const image of images) seen.set(image, (seen.get(image) ?? 0) + 1)
      return Math.max(...seen.values()) >= images.length / 2
    })
    expect(crowded.filter(Boolean).length).toBeGreaterThan(5)
    expect(crowded.filter(Boolean).length).toBeLessThan(100)
  })
})

describe('the router that learns', () => {
  const experts = 16
  const router = learnRouter(digits.learn, experts, 1)
  test('has directions of one length, and exact weights', () => {
    for (let e = 0; e < experts; e++) {
      const row = router.subarray(e * pixels, (e + 1) * pixels)
      expect(Math.hypot(...row)).toBeCloseTo(1, 2)
      expect(row.every((w) => Number.isInteger(w * 1024))).toBe(true)
    }
  })
  test('sends unseen images of one class to few experts: what chance would not', () => {
    const { values, byClass } = digits.route
    const shares = byClass.map((pool) => {
      const counts = new Array<number>(experts).fill(0)
      for (const image of pool) {
        const logits = Array.from({ length: experts }, (_, e) => {
          let sum = 0
          for (let p = 0; p < pixels; p++) sum += (router[e * pixels + p] ?? 0) * (values[image * pixels + p] ?? 0)
          return sum
        })
        const best = logits.indexOf(Math.max(...logits))
        counts[best] = (counts[best] ?? 0) + 1
      }
      const [first = 0, second = 0] = counts.sort((a, b) => b - a)
      return (first + second) / pool.length
    })
    expect(shares.reduce((sum, x) => sum + x, 0) / shares.length).toBeGreaterThan(0.5)
  })
  test('refuses more experts than images', () => {
    expect(() => learnRouter(digits.learn, 2000, 1)).toThrow(/experts: expected at most 898/)
  })
})

describe('files', () => {
  test('are read as they were written, and refused when they do not add up', () => {
    const [trace] = shipped
    if (!trace) throw new Error('no traces')
    const path = join(scratch, 'trace.json')
    writeWhole(path, traceText(trace))
    expect(readTrace(path)).toEqual(trace)
    writeFileSync(path, traceText({ ...trace, counts: [[1, 2, 3]] }))
    expect(() => readTrace(path)).toThrow(/trace\.json: step 0: expected \d+ counts with a sum of \d+, got 3 with 6/)
    writeFileSync(path, '{"format":"other"}')
    expect(() => readTrace(path)).toThrow(/expected format/)
    expect(readTraces(join(scratch, 'nowhere'))).toEqual([])
  })
  test('that cannot be written leave what was there, and nothing else', () => {
    const folder = join(scratch, 'whole')
    const path = join(folder, 'a.json')
    writeWhole(path, 'first')
    expect(readFileSync(path, 'utf8')).toBe('first')
    // A folder of that name: the rename fails.
    expect(() => writeWhole(folder, 'second')).toThrow()
    expect(readdirSync(scratch).filter((name) => name.endsWith('.tmp'))).toEqual([])
    expect(readFileSync(path, 'utf8')).toBe('first')
  })
})
