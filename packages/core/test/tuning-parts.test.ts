/** The parts of tuning that need no device: what is decided from times, routings, the file and where it is, a model's shape. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { afterEach, describe, expect, test } from 'vitest'
import { modelShape, TuneFileError, tune, tuneFilePath } from '../src/index.js'
import { decide, errorOf, type Measured, medianOf, orderPrices } from '../src/tuning/decide.js'
import { routings } from '../src/tuning/routing.js'
import { shipped } from '../src/tuning/shipped.js'
import { readTuneFile, writeTuneFile } from '../src/tuning/store.js'
import { checkTuneFile, mergeTuneFiles, parseTuneFile, type TuneFile } from '../src/tuning/tune-file.js'

const steady = (us: number): number[] => [us, us * 1.001, us * 0.999, us, us * 1.0005]
const variant = (name: string, even: number, skewed = even, more: Partial<Measured> = {}): Measured => ({
  name,
  order: 'a',
  heuristic: false,
  fusedStep: false,
  even: steady(even),
  skewed: steady(skewed),
  ...more,
})
const own = (even: number, skewed = even, more: Partial<Measured> = {}) =>
  variant('own', even, skewed, { heuristic: true, ...more })

describe('the decision', () => {
  test('a faster variant is chosen, the others follow from fast to slow', () => {
    const { chosen, variants, speedup, heuristic } = decide([variant('slow', 30), own(20), variant('fast', 10)])
    expect([chosen, heuristic]).toEqual(['fast', 'own'])
    expect(variants).toEqual(['fast', 'own', 'slow'])
    expect(speedup).toBeCloseTo(2, 2)
  })

  test('one that is faster by less than the noise is not', () => {
    const noisy = [8, 12, 10, 7, 13]
    expect(decide([own(10, 10, { even: noisy, skewed: noisy }), variant('fast', 9)]).chosen).toBe('own')
    expect(decide([own(10), variant('fast', 9.95)]).chosen).toBe('own')
    expect(decide([own(10), variant('fast', 9)]).chosen).toBe('fast')
  })

  test('one that is faster on the whole but slower by one of the loads is not', () => {
    expect(decide([own(10, 10), variant('even only', 5, 11)]).chosen).toBe('own')
  })

  test("a step of the heuristic's that is fused is not what was timed, and stays", () => {
    expect(decide([own(10, 10, { fusedStep: true }), variant('fast', 5)]).chosen).toBe('own')
    expect(decide([own(10), variant('fast', 5, 5, { fusedStep: true })]).chosen).toBe('fast')
  })

  test('the chosen one comes first, everything else once, and none is faster beyond the noise', () => {
    const us = fc.double({ min: 1, max: 1000, noNaN: true })
    const samples = fc.array(us, { minLength: 1, maxLength: 15 })
    const measured = fc.array(fc.record({ even: samples, skewed: samples }), { minLength: 1, maxLength: 8 })
    void fc.assert(
      fc.property(measured, fc.nat(), (all, which) => {
        const named = all.map((m, i) => ({
          ...m,
          name: `v${i}`,
          order: '',
          heuristic: i === which % all.length,
          fusedStep: false,
        }))
        const { variants, chosen, heuristic, noise, speedup, scoreUs } = decide(named)
        expect(variants[0]).toBe(chosen)
        expect([...variants].sort()).toEqual(named.map(({ name }) => name).sort())
        expect(heuristic).toBe(`v${which % all.length}`)
        if (chosen !== heuristic) expect(speedup).toBeGreaterThan(1 / (1 - noise) - 1e-9)
        expect(speedup).toBeGreaterThanOrEqual(1)
        const rest = variants.slice(1).map((name) => scoreUs.get(name) ?? Number.NaN)
        expect(rest).toEqual([...rest].sort((a, b) => a - b))
      }),
    )
  })

  test('medians and their error', () => {
    expect(medianOf([3, 1, 2])).toBe(2)
    expect(medianOf([4, 1, 2, 3])).toBe(2.5)
    expect(errorOf([5, 5, 5])).toBe(0)
    expect(errorOf([4, 5, 6, 4, 6])).toBeGreaterThan(errorOf([4.9, 5, 5.1, 4.9, 5.1]))
  })

  test('an order that lacks a bucket has no price; the cheapest of the others is first, free where it is chosen', () => {
    const few = [
      variant('g', 5, 5, { order: 'gemv' }),
      own(10, 10, { order: 'mma' }),
      variant('w', 12, 12, { order: 'wgmma' }),
    ]
    const many = [own(40, 40, { order: 'mma' }), variant('w', 20, 20, { order: 'wgmma' })]
    const buckets = [few, many].map((measured) => ({ measured, decision: decide(measured) }))
    const prices = orderPrices(buckets, new Set(['gemv', 'mma', 'wgmma']))
    expect(prices.map(({ order }) => order)).toEqual(['wgmma', 'mma'])
    expect(prices[0]?.prices[0]).toBeCloseTo(2.4, 2)
    expect(prices[0]?.prices[1]).toBeCloseTo(1, 6)
    expect(prices[0]?.mean).toBeCloseTo(Math.sqrt(2.4), 2)
    expect(orderPrices(buckets, new Set(['mma'])).map(({ order }) => order)).toEqual(['mma'])
    expect(orderPrices([], new Set(['mma']))).toEqual([])
  })
})

test('routings: every slot once, ascending within an expert, k different experts a token, the seed decides', () => {
  const shapes = fc.integer({ min: 1, max: 9 }).chain((numExperts) =>
    fc.record({
      numExperts: fc.constant(numExperts),
      topK: fc.integer({ min: 1, max: numExperts }),
      tokens: fc.nat(40),
    }),
  )
  void fc.assert(
    fc.property(shapes, fc.constantFrom(0, 1.5), fc.nat(), (shape, skew, seed) => {
      const all = routings(shape, skew, 2, seed)
      expect(routings(shape, skew, 2, seed)).toEqual(all)
      for (const { offsets, order } of all) {
        const slots = shape.tokens * shape.topK
        expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: slots }, (_, i) => i))
        expect([offsets[0], offsets.at(-1)]).toEqual([0, slots])
        for (let e = 0; e < shape.numExperts; e++) {
          const mine = [...order.slice(offsets[e], offsets[e + 1])]
          expect(mine).toEqual([...mine].sort((a, b) => a - b))
          const tokens = mine.map((slot) => Math.floor(slot / shape.topK))
          expect(new Set(tokens).size).toBe(tokens.length)
        }
      }
    }),
  )
  const load = (skew: number) => {
    const [one] = routings({ tokens: 512, numExperts: 16, topK: 2 }, skew, 1, 4)
    const rows = Array.from({ length: 16 }, (_, e) => (one?.offsets[e + 1] ?? 0) - (one?.offsets[e] ?? 0))
    return Math.max(...rows) / 64
  }
  expect(load(0)).toBeLessThan(1.5)
  expect(load(1.5)).toBeGreaterThan(2.5)
})

const file: TuneFile = {
  schema: 'nexus-tune/1',
  deviceClass: 'sm_90/132',
  device: 'NVIDIA H200',
  driver: '13.0',
  nexus: '0.1.0',
  source: 'a test',
  linears: [
    {
      dtype: 'bf16',
      numExperts: 8,
      k: 64,
      n: 128,
      gated: true,
      order: 'wgmma64',
      rows: [
        { rows: 2, variants: ['b', 'a'], heuristic: 'a', evenUs: { a: 2, b: 1 }, skewedUs: { a: 2.5, b: 1.5 } },
        { rows: 16, variants: ['a'], heuristic: 'a', evenUs: {}, skewedUs: {} },
      ],
    },
  ],
}
const [linear] = file.linears
const entry = linear?.rows[0]

describe('the file', () => {
  test('is read as it was written; the shipped ones are such files', () => {
    expect(parseTuneFile(JSON.stringify(file), 'f.json')).toEqual(file)
    for (const own of shipped) {
      expect(checkTuneFile(JSON.parse(JSON.stringify(own)), 'shipped')).toEqual(own)
      expect(own.source).toMatch(/docs\/|results\//)
    }
  })

  test.each([
    ['not an object', [], 'the file: expected an object, got []'],
    ['another schema', { ...file, schema: 'nexus-tune/2' }, `schema: expected 'nexus-tune/1', got "nexus-tune/2"`],
    ['no device class', { ...file, deviceClass: '' }, 'deviceClass: expected a string that is not empty, got ""'],
    ['a driver that is a number', { ...file, driver: 13 }, 'driver: expected a string that is not empty, got 13'],
    ['linears that are no list', { ...file, linears: {} }, 'linears: expected a list, got {}'],
    ['a layer twice', { ...file, linears: [linear, linear] }, 'linears[1]: expected each layer once'],
    [
      'a dtype of another kind',
      { ...file, linears: [{ ...linear, dtype: 'f64' }] },
      'linears[0].dtype: expected f32, bf16 or f16, got "f64"',
    ],
    [
      'no experts',
      { ...file, linears: [{ ...linear, numExperts: 0 }] },
      'linears[0].numExperts: expected an integer from 1 to 1024, got 0',
    ],
    [
      'gated by a word',
      { ...file, linears: [{ ...linear, gated: 'yes' }] },
      'linears[0].gated: expected true or false, got "yes"',
    ],
    [
      'rows twice',
      { ...file, linears: [{ ...linear, rows: [entry, entry] }] },
      'linears[0].rows: expected each number of rows once, got 2',
    ],
    [
      'no variants',
      { ...file, linears: [{ ...linear, rows: [{ ...entry, variants: [] }] }] },
      'linears[0].rows[0].variants: expected a list of names, at least one, got []',
    ],
    [
      'a time of zero',
      { ...file, linears: [{ ...linear, rows: [{ ...entry, evenUs: { a: 0 } }] }] },
      'linears[0].rows[0].evenUs: expected microseconds above 0 by variant, got {"a":0}',
    ],
  ])('%s is refused by name', (_, value, message) => {
    const parse = () => parseTuneFile(JSON.stringify(value), 'some/f.json')
    expect(parse).toThrow(TuneFileError)
    expect(parse).toThrow(`some/f.json: ${message}`)
  })

  test('text that is not JSON, or has a key twice, is refused', () => {
    for (const text of ['', '{', '{"schema":"a","schema":"b"}']) {
      expect(() => parseTuneFile(text, 'f.json')).toThrow(/^f\.json: is not valid JSON/)
    }
  })

  test('a newer one takes the place of the same rows, the others stay', () => {
    const newer: TuneFile = {
      ...file,
      source: 'later',
      linears: [
        {
          dtype: 'bf16',
          numExperts: 8,
          k: 64,
          n: 128,
          gated: true,
          order: null,
          rows: [{ rows: 2, variants: ['a'], heuristic: 'a', evenUs: {}, skewedUs: {} }],
        },
        { dtype: 'bf16', numExperts: 8, k: 64, n: 128, gated: false, order: null, rows: [] },
      ],
    }
    const merged = mergeTuneFiles(file, newer)
    expect(merged.source).toBe('later')
    expect(merged.linears.map(({ gated }) => gated)).toEqual([true, false])
    expect(merged.linears[0]?.rows).toEqual([newer.linears[0]?.rows[0], linear?.rows[1]])
    expect(merged.linears[0]?.order).toBeNull()
  })
})

describe('where the file is', () => {
  const saved = { file: process.env.NEXUS_TUNE_FILE, cache: process.env.XDG_CACHE_HOME }
  const set = (name: string, value: string | undefined) => {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  afterEach(() => {
    set('NEXUS_TUNE_FILE', saved.file)
    set('XDG_CACHE_HOME', saved.cache)
  })

  test('one for each class of devices in the cache folder, or the one that is named', () => {
    set('NEXUS_TUNE_FILE', undefined)
    set('XDG_CACHE_HOME', '/some/cache')
    expect(tuneFilePath('sm_90/132')).toBe('/some/cache/nexus/tune-sm_90-132.json')
    expect(tuneFilePath('cpu/avx2')).toBe('/some/cache/nexus/tune-cpu-avx2.json')
    set('XDG_CACHE_HOME', 'relative')
    expect(tuneFilePath('cpu/avx2')).toBe(join(homedir(), '.cache', 'nexus', 'tune-cpu-avx2.json'))
    set('NEXUS_TUNE_FILE', '/elsewhere/t.json')
    expect(tuneFilePath('cpu/avx2')).toBe('/elsewhere/t.json')
  })

  test('written as a whole, into folders that are made; what cannot be written leaves the old one and nothing else', () => {
    const folder = mkdtempSync(join(tmpdir(), 'nexus-tune-'))
    try {
      const path = join(folder, 'a', 'b', 'tune.json')
      expect(readTuneFile(path)).toBeNull()
      writeTuneFile(path, file)
      expect(readTuneFile(path)).toEqual(file)
      writeTuneFile(path, { ...file, source: 'again' })
      expect(readTuneFile(path)?.source).toBe('again')
      expect(readdirSync(join(folder, 'a', 'b'))).toEqual(['tune.json'])
      // A folder in its place, and a file in the place of its folder.
      mkdirSync(join(folder, 'taken'))
      writeFileSync(join(folder, 'taken', 'x'), '')
      expect(() => writeTuneFile(join(folder, 'taken'), file)).toThrow(TuneFileError)
      expect(() => writeTuneFile(join(path, 'tune.json'), file)).toThrow(TuneFileError)
      expect(() => readTuneFile(join(folder, 'taken'))).toThrow(/cannot be read \(EISDIR\)/)
      expect(readdirSync(folder).sort()).toEqual(['a', 'taken'])
      expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({ source: 'again' })
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
})

describe('what is to be tuned', () => {
  test("a model's config.json, or its folder, says the shape", async () => {
    const folder = join(import.meta.dirname, 'fixtures', 'hf-dev', 'qwen2_moe')
    const shape = await modelShape(folder)
    expect(shape).toEqual(await modelShape(join(folder, 'config.json')))
    const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, number>
    expect(shape).toMatchObject({
      inputDim: config.hidden_size,
      hiddenDim: config.moe_intermediate_size,
      numExperts: config.num_experts,
      topK: config.num_experts_per_tok,
      kind: 'gated',
      shared: { hiddenDim: config.shared_expert_intermediate_size },
    })
    await expect(modelShape('/no/such/folder')).rejects.toMatchObject({ code: 'ERR_NEXUS_CHECKPOINT' })
    await expect(modelShape('')).rejects.toThrow(/^path: /)
  })

  const shape = { inputDim: 8, hiddenDim: 8, numExperts: 2, topK: 1, device: 'cpu' } as const
  test.each([
    [{ ...shape, tokens: [] }, /^tokens: expected a list/],
    [{ ...shape, tokens: [0] }, /^tokens\[0\]: expected an integer from 1/],
    [{ ...shape, budgetMs: 0 }, /^budgetMs: /],
    [{ ...shape, skew: -1 }, /^skew: /],
    [{ ...shape, cacheBytes: 0.5 }, /^cacheBytes: /],
    [{ ...shape, onProgress: 1 as never }, /^onProgress: expected a function, got 1/],
    [{ ...shape, signal: {} as never }, /^signal: expected an AbortSignal/],
    [{ ...shape, weights: null } as never, /^tune options: unknown option 'weights'/],
    [{ ...shape, topK: 3 }, /topK/],
  ])('%j is refused by name', async (options, message) => {
    await expect(tune(options)).rejects.toThrow(message)
  })
})
