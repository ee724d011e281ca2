/** The parts of tuning that need no device: what is decided from times, routings, the file and where it is, a model's shape. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { afterEach, describe, expect, test } from 'vitest'
import { modelShape, TuneFileError, tune, tuneFilePath } from '../src/index.js'
import { decide, errorOf, type Measured, medianOf, orderPrices, ranked } from '../src/tuning/decide.js'
import { linearsOf } from '../src/tuning/linears.js'
import { pairsOf } from '../src/tuning/pairs.js'
import { report } from '../src/tuning/report.js'
import { sampleInRounds, type Trial } from '../src/tuning/rounds.js'
import { expertBiases, routings } from '../src/tuning/routing.js'
import { launchCount } from '../src/tuning/series.js'
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
const linearShape = { inputDim: 16, hiddenDim: 24, numExperts: 4 } as const
const own = (even: number, skewed = even, more: Partial<Measured> = {}) =>
  variant('own', even, skewed, { heuristic: true, ...more })

describe('the decision', () => {
  test('a faster variant is chosen', () => {
    const all = [variant('slow', 30), own(20), variant('fast', 10)]
    const { chosen, speedup, heuristic } = decide(all)
    expect([chosen, heuristic]).toEqual(['fast', 'own'])
    expect(speedup).toBeCloseTo(2, 2)
    expect(ranked(all).map(({ name }) => name)).toEqual(['fast', 'own', 'slow'])
    expect(() => decide([variant('fast', 10)])).toThrow(/^measured: expected the heuristic's/)
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

  test("another one than the heuristic's is faster beyond the noise", () => {
    const us = fc.double({ min: 1, max: 1000, noNaN: true })
    const samples = fc.array(us, { minLength: 1, maxLength: 15 })
    const measured = fc.array(fc.record({ even: samples, skewed: samples }), { minLength: 1, maxLength: 8 })
    void fc.assert(
      fc.property(measured, fc.nat(), (all, which) => {
        const named = all.map((m, i) => ({
          ...m,
          name: `v${i}`,
          heuristic: i === which % all.length,
        }))
        const { chosen, heuristic, noise, speedup } = decide(named)
        expect(named.map(({ name }) => name)).toContain(chosen)
        expect(heuristic).toBe(`v${which % all.length}`)
        if (chosen !== heuristic) expect(speedup).toBeGreaterThan(1 / (1 - noise) - 1e-9)
        expect(speedup).toBeGreaterThanOrEqual(1)
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
    const buckets = [few, many].map((measured) => ({ measured, chosen: ranked(measured)[0]?.name ?? '' }))
    const prices = orderPrices(buckets, new Set(['gemv', 'mma', 'wgmma']))
    expect(prices.map(({ order }) => order)).toEqual(['wgmma', 'mma'])
    expect(prices[0]?.prices[0]).toBeCloseTo(2.4, 2)
    expect(prices[0]?.prices[1]).toBeCloseTo(1, 6)
    expect(prices[0]?.mean).toBeCloseTo(Math.sqrt(2.4), 2)
    expect(orderPrices(buckets, new Set(['mma'])).map(({ order }) => order)).toEqual(['mma'])
    expect(orderPrices([], new Set(['mma']))).toEqual([])
  })

  test('an order of what is chosen is free, and none is cheaper, where a step chose what is not the fastest alone', () => {
    const measured = [own(10, 10, { order: 'mma' }), variant('w', 5, 5, { order: 'wgmma' })]
    const prices = orderPrices([{ measured, chosen: 'own' }], new Set(['mma', 'wgmma']))
    expect(prices.map((price) => price.prices)).toEqual([[1], [1]])
  })
})

describe('the pairs that are worth a step', () => {
  const named = (prefix: string, us: readonly number[], heuristic: number) =>
    us.map((time, i) => variant(`${prefix}${i}`, time, time, { heuristic: i === heuristic }))

  test("the heuristic's, the fastest alone, then one variant for both, the fastest first", () => {
    const first = [variant('a', 1), variant('b', 2), own(3), variant('c', 4), variant('only first', 1.5)]
    const second = [variant('c', 1), variant('a', 3), own(2.5), variant('b', 4)]
    expect(pairsOf([first, second])).toEqual([
      ['own', 'own'],
      ['a', 'c'],
      ['a', 'a'],
      ['c', 'c'],
      ['b', 'b'],
    ])
  })

  test('three layers have three; heuristics that differ are a pair and each tried for all', () => {
    const layers = [
      [own(3), variant('x', 4)],
      [variant('x', 1, 1, { heuristic: true }), variant('own', 9)],
      [own(2), variant('x', 7)],
    ]
    expect(pairsOf(layers)).toEqual([
      ['own', 'x', 'own'],
      ['x', 'x', 'x'],
      ['own', 'own', 'own'],
    ])
  })

  test("at most eight, each once, the heuristic's first, all of them candidates", () => {
    const times = fc.array(fc.double({ min: 1, max: 99, noNaN: true }), { minLength: 1, maxLength: 12 })
    void fc.assert(
      fc.property(fc.array(fc.tuple(times, fc.nat()), { minLength: 1, maxLength: 3 }), (given) => {
        const layers = given.map(([us, own]) => named('v', us, own % us.length))
        const pairs = pairsOf(layers)
        expect(pairs[0]).toEqual(given.map(([us, own]) => `v${own % us.length}`))
        expect(pairs.length).toBeLessThanOrEqual(8)
        expect(new Set(pairs.map((pair) => pair.join())).size).toBe(pairs.length)
        for (const pair of pairs) {
          expect(pair).toHaveLength(layers.length)
          for (const [i, name] of pair.entries()) expect(layers[i]?.map((m) => m.name)).toContain(name)
        }
      }),
    )
  })

  test("without the heuristic's there are none", () => {
    expect(() => pairsOf([[variant('a', 1)]])).toThrow(/^layers: /)
  })
})

describe('samples in rounds', () => {
  const trial = (name: string, us: number, seen: string[], heuristic = false): Trial => ({
    name,
    heuristic,
    even: [],
    skewed: [],
    sampleUs: (load) => {
      seen.push(`${load} ${name}`)
      return Promise.resolve(us)
    },
  })

  test('each load is set once a round, another candidate is first in every round, and the first round does not count', async () => {
    const seen: string[] = []
    const trials = [trial('a', 10, seen, true), trial('b', 11, seen)]
    const begin = (load: string) => Promise.resolve(void seen.push(`begin ${load}`))
    await sampleInRounds(trials, { until: 0, signal: undefined, begin })
    expect(seen.slice(0, 6)).toEqual(['begin even', 'even a', 'even b', 'begin skewed', 'skewed a', 'skewed b'])
    expect(seen.slice(6, 9)).toEqual(['begin even', 'even b', 'even a'])
    expect(trials.map(({ even, skewed }) => [even.length, skewed.length])).toEqual([
      [5, 5],
      [5, 5],
    ])
  })

  test("one that is hopeless keeps its first sample, unless it is the heuristic's; an abort ends it", async () => {
    const seen: string[] = []
    const trials = [trial('own', 100, seen, true), trial('good', 10, seen), trial('hopeless', 41, seen)]
    await sampleInRounds(trials, { until: Number.POSITIVE_INFINITY, signal: undefined })
    expect(trials.map(({ even }) => even.length)).toEqual([15, 15, 1])
    const reason = new Error('enough')
    const stopped = sampleInRounds([trial('a', 1, [], true)], { until: 0, signal: AbortSignal.abort(reason) })
    await expect(stopped).rejects.toBe(reason)
  })
})

test('a series goes once over all weights and inputs where that is affordable, and lasts long enough where it is not', () => {
  expect(launchCount(8, 100)).toBe(8)
  expect(launchCount(8, 200)).toBe(2)
  expect(launchCount(8, 10)).toBe(30)
  expect(launchCount(1, 1e6)).toBe(1)
  expect(launchCount(1, 0)).toBe(64)
})

describe('the report', () => {
  const device = 'cpu'
  const mlp = { ...linearShape, kind: 'gated', activation: 'swiglu', limit: 7, alpha: 1.702, dtype: 'f32' } as const
  const linears = linearsOf({ ...mlp, outputDim: 16 }, 2, null)
  const cells = linears.map((linear) => ({
    linear,
    tokens: 8,
    rows: 16,
    measured: [own(10), variant('alone', 5), variant('together', 7)],
  }))
  const timed = [
    { ...own(30), pair: ['own', 'own'] },
    { ...variant('alone + alone', 40), pair: ['alone', 'alone'] },
    { ...variant('together + together', 20), pair: ['together', 'together'] },
  ]

  test('the step decides, not the fastest alone; what it chose leads the file', () => {
    const decision = decide(timed)
    const steps = [
      { mlp: 'experts', tokens: 8, cells, measured: timed, decision, chosen: ['together', 'together'] },
    ] as const
    const found = report(linears, { cells, steps, skipped: [] }, { device, elapsedMs: 1 })
    for (const cell of found.cells) {
      expect(cell).toMatchObject({ chosen: 'together', heuristic: 'own', noise: decision.noise })
      expect(cell.speedup).toBeCloseTo(1.5, 2)
      expect(cell.candidates.map(({ evenUs }) => evenUs)).toEqual([10, 5, 7])
    }
    expect(found.file.linears.map(({ rows }) => rows[0]?.variants)).toEqual([
      ['together', 'alone', 'own'],
      ['together', 'alone', 'own'],
    ])
    expect(found.steps).toMatchObject([
      {
        mlp: 'experts',
        tokens: 8,
        linears: ['experts 1', 'experts 2'],
        heuristic: ['own', 'own'],
        chosen: ['together', 'together'],
        pairs: [{ variants: ['own', 'own'], evenUs: 30 }, { evenUs: 40 }, { evenUs: 20 }],
      },
    ])
  })

  test("without a step nothing but the heuristic's is believed, and nothing kept", () => {
    const found = report(linears, { cells, steps: [], skipped: [] }, { device, elapsedMs: 1 })
    for (const cell of found.cells)
      expect(cell).toMatchObject({ chosen: 'own', heuristic: 'own', speedup: 1, noise: null })
    expect(found.file.linears).toEqual([])
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

  // A step's biases are those of the routings: the expert that has the most rows is the one with the largest.
  const bias = expertBiases(16, 1.5, 4)
  const [one] = routings({ tokens: 512, numExperts: 16, topK: 2 }, 1.5, 1, 4)
  const rows = [...bias.keys()].map((e) => (one?.offsets[e + 1] ?? 0) - (one?.offsets[e] ?? 0))
  expect(rows.indexOf(Math.max(...rows))).toBe(bias.indexOf(Math.max(...bias)))
  expect([...expertBiases(3, 0, 4)].map(Math.abs)).toEqual([0, 0, 0])
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
