/** A layer that schedules its steps: graphs, re-planning, plans in words, statistics. */
import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { MoELayer, type MoELayerOptions, policies, Stream, Tensor } from '../src/index.js'

onEachDevice('scheduling', (device) => {
  const shape: MoELayerOptions = { inputDim: 32, hiddenDim: 24, numExperts: 8, topK: 2, device }
  const input = (tokens: number, seed = tokens) =>
    Tensor.randn([tokens, 32], { device, dtype: device === 'cpu' ? 'f32' : 'bf16', seed })

  test('64 steps of differing batch sizes by graphs, queued without waiting', async () => {
    await using plain = await MoELayer.create(shape)
    await using layer = await MoELayer.create({ ...shape, graphs: { captureAfter: 1 } })
    const sizes = Array.from({ length: 64 }, (_, i) => (i * 37) % 65)
    const inputs = sizes.map((tokens, i) => input(tokens, i))
    // Twice, so that every bucket has been seen and recorded.
    for (const x of [...inputs, ...inputs]) layer.enqueue(x).dispose()
    const before = layer.performanceStats().graphs
    const queued = inputs.map((x) => layer.enqueue(x))
    const after = layer.performanceStats().graphs
    expect((after?.hits ?? 0) - (before?.hits ?? 0)).toBe(64)
    expect(after?.captures).toBe(before?.captures)
    expect(after?.paddingWaste).toBeGreaterThan(0)
    for (const [i, x] of inputs.entries()) {
      const { output } = await plain.forward(x)
      expect(await queued[i]?.toArray(), `${sizes[i]} tokens`).toEqual(await output.toArray())
      for (const tensor of [x, queued[i], output]) tensor?.dispose()
    }
  })

  test('a step by a graph has its counts and its total time, but no phases', async () => {
    await using layer = await MoELayer.create({ ...shape, graphs: { captureAfter: 1 } })
    using x = input(20)
    const eager = await layer.forward(x)
    expect(eager.stats.times.expertsMs).toBeGreaterThanOrEqual(0)
    const replayed = await layer.forward(x, { routing: true })
    const { stats } = replayed
    expect(stats.times).toMatchObject({ routerMs: null, expertsMs: null, sharedMs: null, combineMs: null })
    expect(stats.times.totalMs).toBeGreaterThan(0)
    expect(stats.counts).toEqual(eager.stats.counts)
    expect(await replayed.output.toArray()).toEqual(await eager.output.toArray())
    const ids = await replayed.routing?.expertIds.toArray()
    const seen = new Int32Array(8)
    for (const id of ids ?? []) seen[id] = (seen[id] ?? 0) + 1
    expect(seen).toEqual(stats.counts)
    // Means are of the steps that had phases.
    const { times } = layer.performanceStats()
    expect(times?.mean.expertsMs).toBe(eager.stats.times.expertsMs)
    expect(times?.last.expertsMs).toBeNull()
  })

  test('steps beyond maxTokens are launched one operation at a time', async () => {
    await using layer = await MoELayer.create({ ...shape, graphs: { captureAfter: 1, maxTokens: 16 } })
    using x = input(17)
    for (let i = 0; i < 4; i++) layer.enqueue(x).dispose()
    expect(layer.performanceStats().graphs).toMatchObject({ hits: 0, misses: 0, captures: 0 })
  })

  test('variants are those of the token bucket', async () => {
    await using layer = await MoELayer.create(shape)
    const variants = []
    for (const tokens of [33, 40, 48]) {
      using x = input(tokens)
      layer.enqueue(x).dispose()
      variants.push(layer.performanceStats().variants)
    }
    expect(variants[1]).toEqual(variants[0])
    expect(variants[2]).toEqual(variants[0])
  })

  test.each(['tiered', 'cooperative'] as const)('%s: slices follow the load, and experts migrate', async (strategy) => {
    await using layer = await MoELayer.create({
      ...shape,
      strategy,
      slices: { policy: policies.proportional(), updateEverySteps: 2 },
      profiler: { windowSteps: 4, horizonSteps: 2 },
      trace: true,
    })
    expect(layer.plan.reason).toMatch(new RegExp(`^${strategy} was asked for`))
    using x = input(48)
    const skewed = (hot: number) => {
      const data = new Float32Array(48 * 8)
      for (let t = 0; t < 48; t++)
        for (let e = 0; e < 8; e++) data[t * 8 + e] = (e === hot ? 4 : 0) + ((t * 5 + e) % 8) / 2
      return Tensor.from(data, [48, 8], { device })
    }
    const slicesOfHot: (string | undefined)[] = []
    for (const hot of [1, 6]) {
      using logits = skewed(hot)
      for (let i = 0; i < 12; i++) {
        layer.enqueue(x, { logits }).dispose()
        await Stream.default(device).synchronize()
      }
      const { slices } = layer.plan
      slicesOfHot.push(slices?.slices[slices.sliceOf[hot] ?? -1]?.name)
    }
    expect(slicesOfHot).toEqual(['hot', 'hot'])
    const { slices, profiler, strategy: stats } = layer.performanceStats()
    expect(slices?.manager.migrations).toBeGreaterThan(0)
    expect(profiler?.snapshot.steps).toBe(24)
    expect(profiler?.lostSteps).toBe(0)
    expect(stats?.steps[strategy]).toBe(24)
    const { lanes } = await layer.trace()
    expect(lanes.flatMap(({ experts }) => experts).sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7])
    expect(lanes.some(({ units }) => units.length > 0)).toBe(true)
  })

  test('auto says why, with the predicted time of every candidate', async () => {
    await using layer = await MoELayer.create({ ...shape, slices: { updateEverySteps: 2 }, streams: { count: 3 } })
    expect(layer.plan).toMatchObject({ strategy: 'fused', reason: 'fused: no load is known yet' })
    using x = input(64)
    for (let i = 0; i < 8; i++) {
      const { output } = await layer.forward(x)
      output.dispose()
    }
    const { plan } = layer
    const names = plan.candidates.map(({ strategy }) => strategy)
    expect(names).toContain('fused')
    expect(names).toContain('cooperative')
    expect(names).toContain('streams')
    for (const { predictedUs } of plan.candidates) expect(predictedUs).toBeGreaterThan(0)
    expect(plan.reason).toMatch(new RegExp(`^${plan.strategy}.*\\d us`))
    expect(plan.streams?.streamOf).toHaveLength(8)
    expect(plan.step).toBeGreaterThan(0)
  })

  test('auto corrects its predictions by what steps took, also where nothing measures them', async () => {
    await using layer = await MoELayer.create({ ...shape, slices: { updateEverySteps: 1 }, graphs: true })
    using x = input(64)
    for (let i = 0; i < 40; i++) {
      layer.enqueue(x).dispose()
      await Stream.default(device).synchronize()
    }
    // A model of a whole device against a step this small: the truth is many times slower.
    for (const { correction } of layer.plan.candidates) expect(correction).toBeGreaterThan(2)
  })

  test('statistics are plain data, with every part that is on', async () => {
    await using layer = await MoELayer.create({
      ...shape,
      shared: { hiddenDim: 16 },
      strategy: 'auto',
      slices: { updateEverySteps: 1 },
      streams: { count: 2 },
      graphs: true,
      energy: true,
    })
    using x = input(30)
    for (let i = 0; i < 6; i++) layer.enqueue(x).dispose()
    await Stream.default(device).synchronize()
    const stats = layer.performanceStats()
    expect(JSON.parse(JSON.stringify(stats))).toEqual(stats)
    for (const part of ['strategy', 'slices', 'streams', 'graphs', 'profiler', 'energy'] as const) {
      expect(stats[part], part).not.toBeNull()
    }
    const { energy } = stats
    if (energy?.joules === null) expect(energy.reason).toMatch(/\w/)
    expect(energy?.tokens).toBe(180)
    expect(stats.streams?.experts.flat().sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7])
    expect(stats.graphs).toMatchObject({ captures: 1, hits: 2, misses: 4 })
    expect(stats.slices?.plan.slices.reduce((sum, { grantedSms }) => sum + grantedSms, 0)).toBeGreaterThan(0)
  })

  test.each(['tiered', 'streams'] as const)('%s: a shared expert runs beside the others', async (strategy) => {
    const shared = { hiddenDim: 48, gate: true }
    await using plain = await MoELayer.create({ ...shape, shared })
    await using layer = await MoELayer.create({ ...shape, shared, strategy, graphs: { captureAfter: 2 } })
    // In a slice that is reserved for it, or on one stream more.
    const aux = layer.plan.slices?.slices.find(({ name }) => name === 'aux')
    if (strategy === 'tiered') expect(aux).toMatchObject({ kind: 'reserved', experts: [] })
    using x = input(50)
    using expected = plain.enqueue(x)
    for (let i = 0; i < 5; i++) {
      using output = layer.enqueue(x)
      expect(await output.toArray()).toEqual(await expected.toArray())
    }
    expect(layer.performanceStats().graphs?.hits).toBeGreaterThan(0)
  })

  test('on other streams: in the order of the calls, in a slice where the stream keeps to one', async () => {
    await using plain = await MoELayer.create(shape)
    await using layer = await MoELayer.create({
      ...shape,
      slices: { updateEverySteps: 3 },
      graphs: { captureAfter: 1 },
    })
    const streams = [Stream.create({ device }), Stream.create({ device }), Stream.default(device)]
    const inputs = Array.from({ length: 30 }, (_, i) => input(1 + (i % 9), i))
    const queued = inputs.map((x, i) => layer.enqueue(x, { stream: streams[i % 3] ?? Stream.default(device) }))
    for (const [i, x] of inputs.entries()) {
      const { output } = await plain.forward(x)
      expect(await queued[i]?.toArray()).toEqual(await output.toArray())
      for (const tensor of [x, queued[i], output]) tensor?.dispose()
    }
    for (const stream of streams) stream.dispose()
  })
})
