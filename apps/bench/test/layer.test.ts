// `bench layer`: which cells, what a row says, how peers and anchors come in, and how rows are judged.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MoELayer, systemInfo, Tensor } from '@nexus/core'
import { afterAll, describe, expect, test } from 'vitest'
import { choose, layerRows, relativeError } from '../src/float64.js'
import { aimOf } from '../src/layer/aims.js'
import { type AnchorRow, anchors, scaledPeers, withAnchors } from '../src/layer/anchors.js'
import { type LayerBenchOptions, layerBench } from '../src/layer/bench.js'
import { chooseCells, partOf } from '../src/layer/cells.js'
import { CellCheck } from '../src/layer/check.js'
import { measureCell } from '../src/layer/measure.js'
import { mergeLayerResults } from '../src/layer/merge.js'
import { ShapeLayers } from '../src/layer/shape-layers.js'
import { geometricMean, invarianceVerdict, standingOf, summarise, verdict } from '../src/layer/standing.js'
import { layerOptions } from '../src/layer-options.js'
import { limitUs } from '../src/limits.js'
import { readPart } from '../src/native.js'
import { cellLogits } from '../src/random.js'
import { layerSection, layerTable } from '../src/sections/layer.js'
import { parseShape } from '../src/shapes.js'
import { benchPeers, fakePython } from './fake-peers.js'
import { layerResult, layerRow } from './results.js'

const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-layer-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const tiny = parseShape('tiny:64:96:8:2')

describe('cells', () => {
  test('are those of the anchors, a shape’s together', () => {
    const cells = chooseCells({})
    expect(cells).toHaveLength(anchors().length)
    const key = (c: { shape: string; tokens: number; skew: number }) => `${c.shape} ${c.tokens} ${c.skew}`
    const got = cells.map(({ shape, tokens, skew }) => key({ shape: shape.name, tokens, skew }))
    expect([...got].sort()).toEqual(anchors().map(key).sort())
    const names = cells.map(({ shape }) => shape.name)
    expect(names.filter((name, i) => name !== names[i - 1])).toHaveLength(new Set(names).size)
  })
  test('have the anchors’ dimensions', () => {
    for (const row of anchors() as readonly (AnchorRow & Record<string, unknown>)[]) {
      const { hidden, inter, experts, topK } = row as unknown as ReturnType<typeof parseShape>
      expect(parseShape(row.shape)).toEqual({ name: row.shape, hidden, inter, experts, topK })
    }
  })
  test('of some shapes, of one skew, or all combinations', () => {
    const mixtral = parseShape('mixtral-8x7b')
    expect(chooseCells({ shapes: [mixtral], skew: 1.5 }).map(({ tokens }) => tokens)).toEqual([64, 256, 2048])
    expect(chooseCells({ shapes: [mixtral] })).toHaveLength(9)
    expect(chooseCells({ shapes: [tiny], tokens: [1, 2], skew: 2 })).toEqual([
      { shape: tiny, tokens: 1, skew: 2 },
      { shape: tiny, tokens: 2, skew: 2 },
    ])
    expect(() => chooseCells({ shapes: [tiny] })).toThrow(/--tokens: needed with a shape .* such as tiny/)
    expect(() => chooseCells({ skew: 0.3 })).toThrow(/--skew/)
  })
  test('are divided into parts without loss', () => {
    const cells = chooseCells({})
    for (const of of [1, 2, 3, 7]) {
      const parts = Array.from({ length: of }, (_, i) => partOf(cells, { index: i + 1, of }))
      expect(parts.flat()).toEqual(cells)
      const sizes = parts.map((part) => part.length)
      expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1)
    }
    expect(() => partOf(cells, { index: 3, of: 2 })).toThrow(/--part/)
    expect(() => partOf(cells, { index: 0, of: 2 })).toThrow(/--part/)
  })
})

test('aims go by region, and only the anchors’ cells have one', () => {
  const aim = (shape: string, tokens: number, skew = 0) => aimOf({ shape, tokens, skew })
  expect([1, 8, 64, 512, 4096, 16384].map((n) => aim('qwen3-30b-a3b', n))).toEqual([1.2, 0.98, 0.98, 1.06, 1.2, 1.2])
  expect(aim('mixtral-8x7b', 1)).toBeNull()
  expect(aim('mixtral-8x7b', 8)).toBe(0.98)
  expect(aim('olmoe-1b-7b', 2048, 1.5)).toBe(1.3)
  expect([aim('seed-small', 512), aim('seed-large', 512)]).toEqual([2.2, 1.25])
  expect([aim('seed-small', 8), aim('qwen3-30b-a3b', 100), aim('tiny', 64)]).toEqual([null, null, null])
})

describe('the anchors’ times', () => {
  const row = anchors().find(({ shape, tokens, skew }) => shape === 'qwen3-30b-a3b' && tokens === 4096 && skew === 0)
  if (!row) throw new Error('no such anchor')
  test('are scaled by torch’s time now over its time there', () => {
    const scaled = scaledPeers(row, { torch_grouped_mm: 2 * (row.torchGroupedMmUs ?? 0) })
    expect(scaled).toEqual({
      'triton_kernels (anchor, scaled)': 2 * row.bestPeerUs,
      'vllm_triton (anchor, scaled)': 2 * (row.vllmUs ?? 0),
    })
  })
  test('do not stand in for a peer that ran, nor without torch', () => {
    const ran = { torch_grouped_mm: 100, triton_kernels: 50 }
    expect(Object.keys(scaledPeers(row, ran))).toEqual(['vllm_triton (anchor, scaled)'])
    expect(scaledPeers(row, { triton_kernels: 50 })).toEqual({})
    const best = { ...row, bestPeer: 'vllm_triton_best' }
    expect(Object.keys(scaledPeers(best, { torch_grouped_mm: 1 }))).toEqual(['vllm_triton_best (anchor, scaled)'])
  })
  test('come into the row of their cell only', () => {
    const given = { ...layerRow('qwen3-30b-a3b', 4096, 500), peers: { torch_grouped_mm: 1000 } }
    expect(Object.keys(withAnchors(given).peers)).toHaveLength(3)
    const own = { ...given, tokens: 4095 }
    expect(withAnchors(own)).toBe(own)
  })
})

describe('how rows stand', () => {
  test('the best peer, best ÷ ours, and the aim', () => {
    const row = { ...layerRow('qwen3-30b-a3b', 64, 300, 280), peers: { a: 310, b: 290 } }
    expect(standingOf(row)).toMatchObject({ best: { name: 'b', us: 290 }, aim: 0.98, met: false })
    expect(standingOf(row).gain).toBeCloseTo(290 / 300, 12)
    expect(standingOf({ ...row, peers: {} })).toMatchObject({ best: null, gain: null })
  })
  test('all together, losses named', () => {
    const fast = { ...layerRow('qwen3-30b-a3b', 512, 200, 280), peers: { a: 400 } }
    const slow = { ...layerRow('qwen3-30b-a3b', 64, 300, 280), peers: { a: 270 } }
    const { meanGain, slower, missed, missing, compared } = summarise([fast, slow, layerRow('tiny', 3, 10)])
    expect(meanGain).toBeCloseTo(Math.sqrt(2 * 0.9), 12)
    expect([compared, slower.length, missed.length, missing.length]).toEqual([2, 1, 1, anchors().length - 2])
    const said = verdict([fast, slow]).join('\n')
    expect(said).toContain('1 of 2 cells are slower than the best peer: qwen3-30b-a3b with 64 tokens (0.90).')
    expect(said).toContain('1 of 2 aims are missed: qwen3-30b-a3b with 64 tokens (1.07, aim 0.98).')
    expect(verdict([layerRow('tiny', 3, 10)])).toEqual(['No peer has a time: nothing is compared.'])
    expect(verdict([slow], false).join()).not.toContain('aim ')
    expect(geometricMean([])).toBeNaN()
  })
  test('batch invariance: where it is free, and its price', () => {
    const at = (tokens: number, price: number, variants: string[]) => ({
      ...layerRow('qwen3-30b-a3b', tokens, 100),
      nexusInvariantUs: 100 * price,
      invariantVariants: variants,
    })
    expect(invarianceVerdict([at(1, 1.5, ['c', 'b']), at(8, 1.02, ['a', 'b']), at(64, 1.005, ['c', 'b'])])).toBe(
      'Batch invariance is free (the same kernels, or within 1 %) in 2 of 3 cells; its price is at most 50.0 % (qwen3-30b-a3b with 1 tokens), 15.4 % in the mean.',
    )
    expect(invarianceVerdict([layerRow('tiny', 1, 1)])).toBe('')
  })
  test('as a table', () => {
    const lines = layerTable(layerResult).split('\n')
    expect(lines[0]).toMatch(
      /^shape +tokens +skew +limit us +ours us +a launch +ratio +best us +best\/ours +aim +met +best peer$/,
    )
    expect(lines[1]).toMatch(/qwen3-30b-a3b +64 +0 +280\.0 +300\.0 +n\/a +1\.07 +290\.0 +0\.97 +0\.98 +NO +vllm/)
  })
})

test('as a section: every row has a cell for every column, and both ways of launching where both were timed', () => {
  const widths = (text: string) =>
    new Set(text.split('\n').flatMap((line) => (line.startsWith('|') ? [line.split('|').length] : [])))
  const one = layerSection('one.json', layerResult)
  expect(widths(one).size).toBe(1)
  expect(one).not.toContain('a launch a step')
  const both = layerSection('both.json', {
    ...layerResult,
    rows: layerResult.rows.map((r) => ({ ...r, nexusStepUs: 7.25 })),
  })
  expect(widths(both).size).toBe(1)
  expect(both).toMatch(/\| a launch a step µs \|/)
  expect(both).toContain('| 7.3 |')
  expect(both).toContain('one graph that holds the steps of all inputs')
})

describe('merged', () => {
  const part = (tokens: number, more = {}) => ({
    file: `${tokens}.json`,
    result: { ...layerResult, rows: [layerRow('qwen3-30b-a3b', tokens, 100)], ...more },
  })
  test('rows of all parts, and when they were measured', () => {
    const result = mergeLayerResults([part(1), part(8, { peersError: 'no torch' })])
    expect(result.rows.map(({ tokens }) => tokens)).toEqual([1, 8])
    expect(result.peersError).toBe('no torch')
    expect(result.mergedFrom).toHaveLength(2)
    expect(mergeLayerResults([{ file: 'all', result }, part(64)]).mergedFrom).toHaveLength(3)
  })
  test('with the anchors’ times where a part has none, and no second time', () => {
    const row = { ...layerRow('qwen3-30b-a3b', 64, 300), peers: { torch_grouped_mm: 600 } }
    const result = mergeLayerResults([{ file: 'old', result: { ...layerResult, rows: [row] } }])
    expect(Object.keys(result.rows[0]?.peers ?? {})).toContain('vllm_triton_best (anchor, scaled)')
    expect(mergeLayerResults([{ file: 'again', result }]).rows).toEqual(result.rows)
  })
  test('what was not measured alike is refused, by file and reason', () => {
    const elsewhere = { environment: { ...layerResult.environment, device: 'another device' } }
    expect(() => mergeLayerResults([part(1), part(8, elsewhere)])).toThrow(/8\.json: device is another device/)
    expect(() => mergeLayerResults([part(1), part(8, { seed: 9 })])).toThrow(/8\.json: seed/)
    expect(() => mergeLayerResults([part(1), part(1)])).toThrow(/has the cell qwen3-30b-a3b 1 skew 0/)
    expect(() => mergeLayerResults([part(1), part(8, { kind: 'skew' })])).toThrow(/expected a result of 'layer'/)
    expect(() => mergeLayerResults([])).toThrow(/--merge/)
  })
})

test('the float64 choice: largest first, ties to the lower index, weights that sum to 1', () => {
  expect(choose([1, 3, 3, 2], 2).map(({ expert }) => expert)).toEqual([1, 2])
  const [a, b] = choose([0, Math.log(3)], 2)
  expect(a?.expert).toBe(1)
  expect(a?.weight).toBeCloseTo(0.75, 12)
  expect(b?.weight).toBeCloseTo(0.25, 12)
})

describe.skipIf(noAddon)('on the CPU', () => {
  const options: LayerBenchOptions = {
    cells: [1, 17].flatMap((tokens) => [0, 1.5].map((skew) => ({ shape: tiny, tokens, skew }))),
    device: 'cpu',
    peers: [],
    peerBudgetSeconds: 10,
    budgetMs: 10,
    seed: 5,
    onProgress: () => {},
  }

  test('float64 rows are the layer’s own to float32 rounding', async () => {
    using layer = await MoELayer.create({ ...layerOptions(tiny, 'cpu', 'f32'), seed: 3 })
    const [w1, w2] = layer.weights.experts
    const [host] = cellLogits(5, tiny.experts, 1, 0, 2)
    if (!w1 || !w2 || !host) throw new Error('no weights')
    using logits = Tensor.from(host, [5, tiny.experts], { device: 'cpu' })
    using x = Tensor.randn([5, tiny.hidden], { device: 'cpu', seed: 4 })
    const { output } = await layer.forward(x, { logits })
    const want = await layerRows(tiny, { w1, w2 }, x, host, [4, 0])
    const got = [await readPart(output, 4 * 64, 64), await readPart(output, 0, 64)]
    expect(relativeError(got, want)).toBeLessThan(1e-6)
    expect(relativeError([...got].reverse(), want)).toBeGreaterThan(0.5)
    await expect(readPart(output, 300, 64)).rejects.toThrow(/320 elements/)
    output.dispose()
  })

  test('a row says what it is of, by graph replay, with the limit by its own experts', async () => {
    const result = await layerBench(options)
    expect(result.failed).toEqual([])
    expect(result.rows.map(({ tokens, skew }) => [tokens, skew])).toEqual([
      [1, 0],
      [1, 1.5],
      [17, 0],
      [17, 1.5],
    ])
    for (const row of result.rows) {
      expect(row.limitUs).toBe(limitUs(tiny, row.tokens, row.expertsHit))
      expect(row.ratio).toBe(row.nexusUs / row.limitUs)
      expect(row.relativeError).toBeLessThan(4e-3)
      expect(row.relativeErrorToF32).toBeLessThan(4e-3)
      expect(row.checkedRows).toBe(Math.min(16, row.tokens))
      expect(row.launch).toBe('graph')
      expect(row.nexusStepUs).toBeGreaterThan(0)
      expect(row.nexusWithRouterUs).toBeGreaterThan(0)
      expect(row.nexusInvariantUs).toBeGreaterThan(0)
      expect(row.invariantVariants).toHaveLength(2)
      expect(row.nexusIntervalUs?.[0]).toBeLessThanOrEqual(row.nexusUs)
      expect(row.nexusMaxUs).toBeGreaterThanOrEqual(row.nexusIntervalUs?.[1] ?? Number.NaN)
    }
    const [, , even, skewed] = result.rows
    expect(skewed?.expertsHit).toBeLessThan(even?.expertsHit ?? 0)
    expect(skewed?.withRouterExpertsHit).toBeLessThan(even?.withRouterExpertsHit ?? 0)
  })

  test('launched one operation at a time when asked to', async () => {
    const { rows, what } = await layerBench({
      ...options,
      cells: options.cells.slice(0, 1),
      graphs: false,
      invariance: false,
    })
    expect(rows[0]?.nexusInvariantUs).toBeUndefined()
    expect(rows[0]?.launch).toBe('eager')
    expect(rows[0]).not.toHaveProperty('nexusStepUs')
    expect(what).toContain('one operation at a time')
  })

  test('peers get the same logits, and a wrong one’s time is left out', async () => {
    const python = fakePython(scratch, 'peers', benchPeers)
    const lines: string[] = []
    const onProgress = (line: string) => void lines.push(line)
    const result = await layerBench({ ...options, peers: ['torch_grouped_mm', 'slow'], python, onProgress })
    expect(result.peersError).toBeNull()
    expect(result.rows.map(({ peers }) => peers)).toEqual([1, 1, 17, 17].map((n) => ({ torch_grouped_mm: 100 * n })))
    expect(lines.filter((line) => line.startsWith('slow, tiny'))).toHaveLength(4)
  })

  test('peers that cannot run are said, and our rows stay', async () => {
    const cells = options.cells.slice(0, 1)
    const failing = fakePython(scratch, 'failing', 'process.exit(3)')
    expect(await layerBench({ ...options, cells, peers: ['a'], python: failing })).toMatchObject({
      peersError: 'the peers ended with 3',
      rows: [{ tokens: 1 }],
    })
    const partial = fakePython(
      scratch,
      'partial',
      `const results = [{ key: ['tiny', 1, 'a', 'layer'], status: 'failed', detail: 'no triton' }]
      results.push({ key: ['tiny', 1, 'b', 'layer'], status: 'skipped', detail: 'too many tokens' })
      fs.writeFileSync(args.json[0], JSON.stringify({ results }))`,
    )
    const some = await layerBench({ ...options, cells, peers: ['a', 'b', 'c'], python: partial })
    expect(some.peersError).toBe('a failed in 1 of 1 cells (no triton); c was not tried in 1 of 1 cells')
    const missing = await layerBench({ ...options, cells, peers: ['a'], python: join(scratch, 'nowhere') })
    expect(missing.peersError).toMatch(/the peers need python3: .*ENOENT/)
  })

  test('a shape that cannot be made is written down, and the others are measured', async () => {
    const wrong = { ...tiny, name: 'wrong', topK: 9 }
    const cells = [
      { shape: wrong, tokens: 1, skew: 0 },
      { shape: wrong, tokens: 8, skew: 0 },
      { shape: tiny, tokens: 1, skew: 0 },
    ]
    const { rows, failed } = await layerBench({ ...options, cells, invariance: false })
    expect(rows.map(({ shape }) => shape)).toEqual(['tiny'])
    expect(failed).toMatchObject([
      { cell: 'wrong 1', why: expect.stringContaining('topK') },
      { cell: 'wrong 8', why: expect.stringContaining('topK') },
    ])
  })

  test('a wrong product of the router is not timed either', async () => {
    const layers = await ShapeLayers.create(tiny, 1, 'cpu', 1, true, false)
    try {
      const x = Tensor.randn([3, 64], { dtype: 'bf16', device: 'cpu', seed: 4 })
      const bias = new Float32Array(8).map((_, e) => e)
      await layers.addToLogits(bias)
      const { output } = await layers.layer(0).forward(x)
      const cell = { shape: tiny, tokens: 3, skew: 1 }
      const right = await CellCheck.ofProduct(layers, cell, x, bias)
      expect(await right.error(output, 'it')).toBeLessThan(4e-3)
      const wrong = await CellCheck.ofProduct(layers, cell, x, bias.toReversed())
      await expect(wrong.error(output, 'it')).rejects.toThrow(/wrong by .*: it, to float64 on rows 2, 1, 0/)
      for (const tensor of [output, x]) tensor.dispose()
    } finally {
      layers.dispose()
    }
  })

  test('what is wrong is not timed', async () => {
    const layers = await ShapeLayers.create(tiny, 1, 'cpu', 1, true, false)
    try {
      // Other weights than those of the float32 twin.
      const [layer] = layers.layers
      await layer?.weights.experts[1]?.write(new Float32Array(layers.weights.w2.size).fill(9))
      await layers.weights.w2.write(new Float32Array(layers.weights.w2.size).fill(9))
      const cell = { shape: tiny, tokens: 4, skew: 0 }
      await expect(measureCell(layers, cell, options)).rejects.toThrow(
        /wrong by a relative error of .*: the output, to float32 on all rows/,
      )
    } finally {
      layers.dispose()
    }
  })
})
