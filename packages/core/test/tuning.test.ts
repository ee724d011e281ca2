/** Tuning for real on every device: measure, save, and what a layer makes of it. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { allFreed, liveMemory, onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  type DeviceName,
  MoELayer,
  Stream,
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
import { resolveOptions } from '../src/options.js'
import { reloadTuning, withChoices } from '../src/tuning/in-force.js'
import { linearsOf } from '../src/tuning/linears.js'
import { expertBiases } from '../src/tuning/routing.js'
import { StepBench } from '../src/tuning/step-bench.js'
import { TuneWeights } from '../src/tuning/tune-weights.js'

const shape = { inputDim: 64, hiddenDim: 48, numExperts: 4, topK: 2, dtype: 'f32' } as const
// Rounds end long before the time does, and the tests before theirs, also on a busy machine.
const quick: TuneOptions = { ...shape, tokens: [1, 16], cacheBytes: 0, budgetMs: 10_000 }
vi.setConfig({ testTimeout: 60_000, hookTimeout: 30_000 })

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
    return allFreed(device)
  })

  test('measures every candidate of every linear layer at every bucket, and says what is to run', async () => {
    const seen: string[] = []
    const {
      cells,
      steps,
      file,
      skipped,
      invariant,
      device: site,
    } = await tune({
      ...options,
      tokens: [15, 1, 16],
      onProgress: ({ linear, tokens, done, total }) => seen.push(`${linear} ${tokens} ${done}/${total}`),
    })
    expect(seen).toEqual([
      'experts 1 1 0/6',
      'experts 2 1 1/6',
      'experts step 1 2/6',
      'experts 1 16 3/6',
      'experts 2 16 4/6',
      'experts step 16 5/6',
      ' 0 6/6',
    ])
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
      expect(noise).toBeGreaterThan(0)
      if (chosen !== heuristic) expect(speedup).toBeGreaterThan(1 + (noise ?? 0))
      expect(invariantPrice).toBeGreaterThanOrEqual(1)
    }
    // Whole steps decide, by pairs of what was timed alone.
    expect(steps.map(({ mlp, tokens, linears }) => [mlp, tokens, linears])).toEqual([
      ['experts', 1, ['experts 1', 'experts 2']],
      ['experts', 16, ['experts 1', 'experts 2']],
    ])
    for (const { tokens, pairs, heuristic, chosen, speedup } of steps) {
      const here = cells.filter((cell) => cell.tokens === tokens)
      expect(heuristic).toEqual(here.map((cell) => cell.heuristic))
      expect(chosen).toEqual(here.map((cell) => cell.chosen))
      expect(here.map((cell) => cell.speedup)).toEqual([speedup, speedup])
      expect(pairs.length).toBeGreaterThan(1)
      expect(pairs[0]?.variants).toEqual(heuristic)
      expect(pairs.map(({ variants }) => variants)).toContainEqual(chosen)
      for (const { variants, evenUs, skewedUs, samples } of pairs) {
        for (const [i, variant] of variants.entries()) {
          expect(here[i]?.candidates.map(({ name }) => name)).toContain(variant)
        }
        expect(evenUs).toBeGreaterThan(0)
        expect(skewedUs).toBeGreaterThan(0)
        expect(samples).toBeGreaterThanOrEqual(1)
      }
    }
    for (const linear of file.linears) {
      for (const { rows, variants } of linear.rows) {
        const cell = cells.find(
          (other) => other.rows === rows && other.linear === (linear.gated ? 'experts 1' : 'experts 2'),
        )
        expect(variants[0]).toBe(cell?.chosen)
        expect([...variants].sort()).toEqual(cell?.candidates.map(({ name }) => name).sort())
      }
    }
    expect(invariant.map(({ linear }) => linear)).toEqual(['experts 1', 'experts 2'])
    expect(file).toMatchObject({ schema: 'nexus-tune/1', deviceClass: site.deviceClass, device: site.device })
    for (const linear of file.linears) expect(linear.rows.map(({ rows }) => rows)).toEqual([2, 32])
  })

  test('what was saved is what later layers run; those that exist keep theirs', async () => {
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

  test('a file of another device or version is left alone, with the reason; off is off', async () => {
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
  })

  test('buckets that the time does not reach are named, not guessed', async () => {
    const { cells, steps, skipped, file } = await tune({ ...options, tokens: [1, 16, 64], budgetMs: 1 })
    expect(cells.length + steps.length + skipped.length).toBe(9)
    expect(skipped).toContainEqual({ linear: 'experts step', tokens: 64 })
    // What has no step keeps the heuristic's variant, by not being in the file.
    const measured = file.linears.reduce((sum, { rows }) => sum + rows.length, 0)
    expect(measured).toBe(2 * steps.length)
    for (const { tokens, chosen, heuristic, noise } of cells) {
      if (!steps.some((step) => step.tokens === tokens)) expect([chosen, noise]).toEqual([heuristic, null])
    }
  })

  test("steps have the choices that are timed, and no other layer has them; a shared expert's are chosen after the experts'", async () => {
    const usual = await plainVariants(16)
    const around = tune({ ...options, shared: { hiddenDim: 24 }, tokens: [16] })
    // Layers that are made meanwhile are as ever.
    const others: (readonly string[])[] = []
    let over = false
    const done = around.finally(() => {
      over = true
    })
    while (!over) {
      others.push(await plainVariants(16))
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    const { steps, cells, file } = await done
    for (const variants of others) expect(variants).toEqual(usual)
    expect(steps.map(({ mlp, linears }) => [mlp, linears])).toEqual([
      ['experts', ['experts 1', 'experts 2']],
      ['shared', ['shared 1', 'shared 2']],
    ])
    expect(steps.flatMap(({ chosen }) => chosen)).toEqual(cells.map(({ chosen }) => chosen))
    expect(file.linears).toHaveLength(4)
  })

  test('a step has the load and the variants that were asked for; weights go beyond the cache and are given back', async () => {
    const config = resolveOptions({ ...shape, device })
    const linears = linearsOf(config.experts, 2, null)
    const stream = Stream.create({ device })
    {
      using weights = new TuneWeights(config, stream, 100_000)
      const site = { weights, device, stream, signal: undefined, skew: 1.5, seed: 3 }
      expect(weights.sets).toHaveLength(2)
      for (const set of weights.sets) expect(set.routerBias).toBe(weights.routerBias)
      const [first, second] = linears.map((linear) => weights.of(linear))
      // 98 and 49 KB: twice 100 KB takes so many of them.
      expect([first?.length, second?.length]).toEqual([3, 5])
      expect(first?.[1]).toBe(weights.sets[1]?.experts[0])
      expect(linears.map((linear) => weights.of(linear))).toEqual([first, second])

      using bench = new StepBench(config, 16, site)
      await bench.load('skewed')
      expect(await weights.routerBias.toFloat32Array()).toEqual(expertBiases(4, 1.5, 3 + 16 + 1))
      await bench.load('even')
      expect(await weights.routerBias.toFloat32Array()).toEqual(new Float32Array(4))
      const choices = linears.map((linear) => {
        const there = call((b) => b.routerKernels.candidates(deviceIndex(device), linear.raw, 32))
        return { linear, variant: there.find(({ heuristic }) => !heuristic)?.name ?? '' }
      })
      const estimate = await bench.estimate(choices)
      expect(estimate.us).toBeGreaterThan(0)
      expect(estimate.scratchBytes).toBeGreaterThan(0)
      {
        using series = await bench.series(choices, estimate, 1)
        expect(await series.sampleUs()).toBeGreaterThan(0)
      }
      const unknown = bench.estimate(linears.map((linear) => ({ linear, variant: 'no such variant' })))
      await expect(unknown).rejects.toThrow(
        /^a step with no such variant as experts 1 at 32 rows was asked for, and it has /,
      )
    }
    stream.dispose()
  })

  test('choices that are in force for a moment leave those before as they were, also where it throws', async () => {
    const found = othersOf(await tune(options))
    saveTuning(found, device)
    const tuned = await plainVariants(16)
    const { deviceClass } = found.device
    expect(() =>
      withChoices(deviceClass, [], () => {
        throw new Error('while it is in force')
      }),
    ).toThrow('while it is in force')
    expect(withChoices(deviceClass, [], () => 7)).toBe(7)
    expect(await plainVariants(16)).toEqual(tuned)
    expect(tuningFor(device).sources).toContain(process.env.NEXUS_TUNE_FILE)
  })

  test('orders that a table mixes change a row with its batch; batch-invariant keeps to one of them', async () => {
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
