/** Tuning for real on every device: measure, save, and what a layer makes of it. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { liveMemory, onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  type DeviceName,
  MoELayer,
  saveTuning,
  Tensor,
  type TuneFile,
  TuneFileError,
  type TuneOptions,
  type TuneReport,
  tune,
  tuneFilePath,
  tuningFor,
} from '../src/index.js'
import { call, deviceIndex } from '../src/native.js'
import { reloadTuning } from '../src/tuning/in-force.js'
import { linearsOf } from '../src/tuning/linears.js'

const shape = { inputDim: 64, hiddenDim: 48, numExperts: 4, topK: 2, dtype: 'f32' } as const
const quick: TuneOptions = { ...shape, tokens: [1, 16], cacheBytes: 0, budgetMs: 2000 }

let folder: string
const before = process.env.NEXUS_TUNE_FILE

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nexus-tune-'))
  process.env.NEXUS_TUNE_FILE = join(folder, 'tune.json')
})
afterEach(() => {
  if (before === undefined) delete process.env.NEXUS_TUNE_FILE
  else process.env.NEXUS_TUNE_FILE = before
  rmSync(folder, { recursive: true, force: true })
})

/** The report with a choice that is not the heuristic's wherever there is one: what a machine on which it pays would find. */
function othersOf({ file, cells, ...rest }: TuneReport): TuneReport {
  const names = [...new Set(cells.map(({ linear }) => linear))]
  const linears = file.linears.map((linear, i) => ({
    ...linear,
    rows: linear.rows.map((entry) => {
      const cell = cells.find(({ linear, rows }) => linear === names[i] && rows === entry.rows)
      const isHeuristic = (name: string) => Number(name === cell?.heuristic)
      return { ...entry, variants: [...entry.variants].sort((a, b) => isHeuristic(a) - isHeuristic(b)) }
    }),
  }))
  return { ...rest, cells, file: { ...file, linears } }
}

onEachDevice('tuning', (device) => {
  const options = { ...quick, device }
  const plainVariants = async (tokens: number, more = {}): Promise<readonly string[]> => {
    await using layer = await MoELayer.create({ ...shape, device, ...more })
    return variantsAt(layer, tokens)
  }
  afterEach(() => {
    // The next test's layers have the tables of an empty folder.
    process.env.NEXUS_TUNE_FILE = join(folder, 'none.json')
    reloadTuning(device)
  })

  test('measures every candidate of every linear layer at every bucket, and says what is to run', {
    timeout: 60_000,
  }, async () => {
    const seen: string[] = []
    const {
      cells,
      file,
      skipped,
      invariant,
      device: site,
    } = await tune({
      ...options,
      tokens: [15, 1, 16],
      onProgress: ({ linear, tokens, done, total }) => seen.push(`${linear} ${tokens} ${done}/${total}`),
    })
    expect(seen).toEqual(['experts 1 1 0/4', 'experts 1 16 1/4', 'experts 2 1 2/4', 'experts 2 16 3/4', ' 0 4/4'])
    expect(cells.map(({ linear, tokens, rows }) => [linear, tokens, rows])).toEqual([
      ['experts 1', 1, 2],
      ['experts 1', 16, 32],
      ['experts 2', 1, 2],
      ['experts 2', 16, 32],
    ])
    expect(skipped).toEqual([])
    const linears = linearsOf(
      { ...shape, kind: 'gated', activation: 'swiglu', limit: 7, alpha: 1.702, outputDim: 64 },
      2,
      null,
    )
    for (const { linear, rows, candidates, chosen, heuristic, speedup, noise, invariantPrice } of cells) {
      const raw = linears.find(({ name }) => name === linear)?.raw
      if (raw === undefined) throw new Error(`no linear layer ${linear}`)
      const there = call((b) => b.routerKernels.candidates(deviceIndex(device), raw, rows))
      expect(candidates.map(({ name }) => name)).toEqual(there.map(({ name }) => name))
      expect(there.find((c) => c.heuristic)?.name).toBe(heuristic)
      expect(there.map(({ name }) => name)).toContain(chosen)
      for (const { evenUs, skewedUs, samples } of candidates) {
        expect(evenUs).toBeGreaterThan(0)
        expect(skewedUs).toBeGreaterThan(0)
        expect(samples).toBeGreaterThanOrEqual(1)
      }
      expect(speedup).toBeGreaterThanOrEqual(1)
      if (chosen !== heuristic) expect(speedup).toBeGreaterThan(1 + noise)
      expect(invariantPrice).toBeGreaterThan(0)
    }
    expect(invariant.map(({ linear }) => linear)).toEqual(['experts 1', 'experts 2'])
    expect(file).toMatchObject({ schema: 'nexus-tune/1', deviceClass: site.deviceClass, device: site.device })
    for (const linear of file.linears) expect(linear.rows.map(({ rows }) => rows)).toEqual([2, 32])
  })

  test('what was saved is what later layers run; those that exist keep theirs', { timeout: 60_000 }, async () => {
    await using old = await MoELayer.create({ ...shape, device, seed: 9 })
    using x = Tensor.randn([16, 64], { dtype: 'f32', device, seed: 1 })
    const bytes = async (layer: MoELayer) => {
      using out = layer.enqueue(x)
      return out.toArray()
    }
    const oldBytes = await bytes(old)
    const heuristics = variantsAt(old, 16)
    const found = othersOf(await tune(options))
    const shipped = reloadTuning(device)
    const { file, tuning } = saveTuning(found, device)
    expect(file).toBe(process.env.NEXUS_TUNE_FILE)
    expect(readdirSync(folder)).toEqual(['tune.json'])
    expect(tuning).toMatchObject({ linears: shipped.linears + 2, sources: [...shipped.sources, file], ignored: [] })
    expect(tuning.hash).toMatch(/^[0-9a-f]{16}$/)

    await using tuned = await MoELayer.create({ ...shape, device, seed: 9 })
    const chosen = found.file.linears.map(({ rows }) => rows.find((entry) => entry.rows === 32)?.variants[0])
    expect(variantsAt(tuned, 16)).toEqual(chosen)
    expect(variantsAt(tuned, 16)).not.toEqual(heuristics)
    // A bucket that was not measured is the heuristic's.
    expect(variantsAt(tuned, 64)).toEqual(variantsAt(old, 64))
    expect(tuned.performanceStats().tuning).toEqual(tuning)
    expect(old.performanceStats().tuning?.hash).toBe(shipped.hash)
    expect(variantsAt(old, 16)).toEqual(heuristics)
    expect(await bytes(old)).toEqual(oldBytes)

    // Strategies and graphs have the tuned layer's bytes.
    const want = await bytes(tuned)
    for (const how of [{ graphs: { captureAfter: 1 } }, { strategy: 'tiered' }, { strategy: 'cooperative' }] as const) {
      await using other = await MoELayer.create({ ...shape, device, seed: 9, ...how })
      for (let i = 0; i < 3; i++) expect(await bytes(other)).toEqual(want)
    }
    // Tuning another shape adds to the file.
    saveTuning(await tune({ ...options, inputDim: 32, tokens: [1] }), device)
    expect(tuningFor(device).linears).toBe(shipped.linears + 4)
    expect(await plainVariants(16)).toEqual(chosen)
  })

  test('a file of another device or version is left alone, with the reason; off is off', {
    timeout: 60_000,
  }, async () => {
    const usual = await plainVariants(16)
    const shipped = reloadTuning(device)
    const found = othersOf(await tune(options))
    const { file } = saveTuning(found, device)
    const own = JSON.parse(readFileSync(file, 'utf8')) as TuneFile
    for (const [change, reason] of [
      [{ deviceClass: 'sm_70/80' }, /^it is for sm_70\/80, this device is /],
      [{ device: 'Some Other Device' }, /^it was measured on 'Some Other Device', this device is '/],
      [{ nexus: '0.0.0' }, /^it was measured with version 0\.0\.0, this is .*: tune again$/],
    ] as const) {
      writeFileSync(file, JSON.stringify({ ...own, ...change }))
      const { hash, ignored } = reloadTuning(device)
      expect(ignored).toEqual([{ source: file, reason: expect.stringMatching(reason) as string }])
      expect(hash).toBe(shipped.hash)
      expect(await plainVariants(16)).toEqual(usual)
    }
    // Saving replaces what cannot be used.
    expect(saveTuning(found, device).tuning.linears).toBe(shipped.linears + 2)
    process.env.NEXUS_TUNE_FILE = 'off'
    expect(reloadTuning(device)).toEqual({
      hash: null,
      linears: 0,
      sources: [],
      ignored: [{ source: 'NEXUS_TUNE_FILE', reason: "it is 'off'" }],
    })
    expect(() => saveTuning(found, device)).toThrow(TuneFileError)
  })

  test('a file that is none is an error of the layer that would have used it, and is not overwritten', async () => {
    const file = tuneFilePath('any')
    writeFileSync(file, '{"schema": "nexus-tune/1"')
    const { liveBytes } = await liveMemory(device)
    await expect(MoELayer.create({ ...shape, device })).rejects.toThrow(TuneFileError)
    await expect(MoELayer.create({ ...shape, device })).rejects.toMatchObject({ code: 'ERR_NEXUS_TUNE_FILE', file })
    expect((await liveMemory(device)).liveBytes).toBe(liveBytes)
    const report = await tune({ ...options, tokens: [1] })
    expect(() => saveTuning(report, device)).toThrow(TuneFileError)
    expect(readFileSync(file, 'utf8')).toBe('{"schema": "nexus-tune/1"')
  })

  test('an abort rejects with its reason and frees what was allocated', async () => {
    const { liveBytes, liveBuffers } = await liveMemory(device)
    for (const at of [0, 1, 3]) {
      const stop = new AbortController()
      const reason = new Error(`stopped at ${at}`)
      const run = tune({
        ...options,
        signal: stop.signal,
        onProgress: ({ done }) => void (done === at && stop.abort(reason)),
      })
      await expect(run).rejects.toBe(reason)
    }
    await expect(tune({ ...options, signal: AbortSignal.abort(new Error('before')) })).rejects.toThrow('before')
    expect(await liveMemory(device)).toEqual({ liveBytes, liveBuffers })
  })

  test('buckets that the time does not reach are named, not guessed', async () => {
    const { cells, skipped, file } = await tune({ ...options, tokens: [1, 16, 64], budgetMs: 1 })
    expect(cells.length + skipped.length).toBe(6)
    expect(skipped.length).toBeGreaterThan(0)
    const measured = file.linears.reduce((sum, { rows }) => sum + rows.length, 0)
    expect(measured).toBe(cells.length)
  })

  test('orders that a table mixes change a row with its batch; batch-invariant keeps to one of them', {
    timeout: 60_000,
  }, async () => {
    const report = await tune(options)
    const orders = new Map(report.cells.flatMap(({ candidates }) => candidates.map(({ name, order }) => [name, order])))
    const kept = new Map(report.file.linears.map((linear) => [linear.k, linear.order]))
    // One order for one token, another one for sixteen.
    const mixed = report.file.linears.map((linear) => ({
      ...linear,
      rows: linear.rows.map((entry, i) => ({
        ...entry,
        variants: [...entry.variants].sort((a, b) => {
          const same = (name: string) => (orders.get(name) === kept.get(linear.k) ? 1 : 0)
          return i === 0 ? same(a) - same(b) : same(b) - same(a)
        }),
      })),
    }))
    saveTuning({ ...report, file: { ...report.file, linears: mixed } }, device)
    expect(await rowsThatDiffer(device, 'run-to-run')).toBeGreaterThan(0)
    expect(await rowsThatDiffer(device, 'batch-invariant')).toBe(0)
  })
})

function variantsAt(layer: MoELayer, tokens: number): readonly string[] {
  const { device, dtype } = layer
  using x = Tensor.zeros([tokens, layer.config.experts.inputDim], { dtype, device })
  layer.enqueue(x).dispose()
  return layer.performanceStats().variants.experts
}

/** Of 16 tokens, those whose row is another one when the token is alone. */
async function rowsThatDiffer(device: DeviceName, deterministic: 'run-to-run' | 'batch-invariant'): Promise<number> {
  await using layer = await MoELayer.create({ ...shape, device, seed: 9, deterministic })
  using made = Tensor.randn([16, 64], { device: 'cpu', seed: 2 })
  const x = await made.toFloat32Array()
  const rows = async (first: number, count: number) => {
    const { output } = await layer.forward(x.subarray(first * 64, (first + count) * 64))
    using _ = output
    return output.toFloat32Array()
  }
  const all = await rows(0, 16)
  let differ = 0
  for (let i = 0; i < 16; i++) {
    const alone = await rows(i, 1)
    if (alone.some((value, j) => value !== all[i * 64 + j])) differ++
  }
  return differ
}
