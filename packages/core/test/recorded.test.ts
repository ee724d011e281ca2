/** Steps of layers in a graph of the caller's: eager bits at every launch, memory that the graph holds, and what is refused. */
import { readFileSync } from 'node:fs'
import { afterEach, expect, test, vi } from 'vitest'
import { allFreed, liveMemory, onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  DisposedError,
  Event,
  Graph,
  GraphCaptureError,
  MoELayer,
  type MoELayerOptions,
  Stream,
  Tensor,
} from '../src/index.js'

vi.setConfig({ testTimeout: 30_000, hookTimeout: 30_000 })

onEachDevice('steps in a graph of the caller', (device) => {
  const shape: MoELayerOptions = {
    inputDim: 32,
    hiddenDim: 24,
    numExperts: 8,
    topK: 2,
    shared: { hiddenDim: 8, gate: true },
    device,
    dtype: 'bf16',
  }
  const tensor = (tokens: number, seed: number) => Tensor.randn([tokens, 32], { device, dtype: 'bf16', seed })
  const blank = (tokens: number) => Tensor.zeros([tokens, 32], { device, dtype: 'bf16' })
  const rewrite = async (x: Tensor, seed: number): Promise<void> => {
    using other = Tensor.randn(x.shape, { device, dtype: 'f32', seed })
    await x.write(await other.toFloat32Array())
  }
  const bytes = async (t: Tensor): Promise<Buffer> => Buffer.from((await t.toArray()).slice().buffer)
  const same = async (got: Tensor, want: Tensor): Promise<void> =>
    expect(Buffer.compare(await bytes(got), await bytes(want))).toBe(0)
  afterEach(() => allFreed(device))

  test('the example of the documentation', async () => {
    const page = readFileSync(new URL('../../../docs/graphs.md', import.meta.url), 'utf8')
    const [, code = ''] = /<!-- example of layers -->\s*```js\n([\s\S]*?)```/.exec(page) ?? []
    const body = code.replace(/^import .*$/gm, '')
    expect(body).toContain('Graph.capture')
    const AsyncFunction = (async () => undefined).constructor as new (
      ...parts: string[]
    ) => (...values: unknown[]) => Promise<readonly Float32Array[]>
    const tail = `
      const again = [await MoELayer.create({ ...shape, seed: 1 }), await MoELayer.create({ ...shape, seed: 2 })]
      again[0].enqueue(x, { out: h, stream })
      again[1].enqueue(h, { out: y, stream })
      const expected = await y.toFloat32Array()
      for (const each of [...again, x, h, y, stream]) each.dispose()
      return [eager, launched, expected]`
    const run = new AsyncFunction('Graph', 'MoELayer', 'Stream', 'Tensor', 'device', `${body}\n${tail}`)
    const [eager, launched, expected] = await run(Graph, MoELayer, Stream, Tensor, device)
    expect(launched).toHaveLength(4 * 64)
    expect(launched).toEqual(expected)
    // The tokens were others.
    expect(launched).not.toEqual(eager)
  })

  const ways: Record<string, Partial<MoELayerOptions>> = {
    'no scheduling': {},
    'graphs and a profiler': { graphs: { captureAfter: 1 }, profiler: true },
    'in lanes, cooperative': { strategy: 'cooperative' },
    'in lanes, on streams': { strategy: 'streams', streams: { count: 3 } },
    'in slices, tiered': { strategy: 'tiered' },
  }
  test.each(Object.entries(ways))('three layers, %s: eager bits at each of 100 launches', async (_, way) => {
    await using first = await MoELayer.create({ ...shape, ...way, seed: 1 })
    await using second = await MoELayer.create({ ...shape, ...way, seed: 2 })
    await using third = await MoELayer.create({ ...shape, seed: 3 })
    using stream = Stream.create({ device })
    using x = tensor(13, 1)
    using logits = Tensor.randn([13, 8], { device, seed: 2 })
    const make = () => [blank(13), blank(13), blank(13)] as const
    const [recorded, eager] = [make(), make()]
    const step = ([a, b, c]: ReturnType<typeof make>, on: { readonly stream?: Stream }) => {
      first.enqueue(x, { logits, out: a, ...on })
      second.enqueue(a, { out: b, ...on })
      third.enqueue(b, { out: c, ...on })
    }
    step(eager, {})
    using graph = Graph.capture(stream, () => step(recorded, { stream }))
    for (let i = 0; i < 100; i++) {
      if (i % 25 === 0) await rewrite(x, 10 + i)
      graph.launch(i % 2 === 0 ? stream : Stream.default(device))
      if (i % 25 !== 24) continue
      step(eager, {})
      for (const [at, want] of eager.entries()) await same(recorded[at] ?? x, want)
    }
    for (const each of [...recorded, ...eager]) each.dispose()
  })

  test('a recorded step is counted as recorded, and not as a step: launches are counted nowhere', async () => {
    const options = { ...shape, graphs: { captureAfter: 1 }, profiler: true, strategy: 'cooperative' } as const
    await using layer = await MoELayer.create(options)
    using x = tensor(9, 1)
    using out = blank(9)
    const stream = Stream.default(device)
    using graph = Graph.capture(stream, () => {
      for (let i = 0; i < 5; i++) layer.enqueue(x, { out })
    })
    for (let i = 0; i < 7; i++) graph.launch()
    const stats = layer.performanceStats()
    expect(stats).toMatchObject({ steps: 0, tokens: 0, recordedSteps: 5 })
    expect(stats.strategy?.steps.cooperative).toBe(0)
    expect(stats.graphs).toMatchObject({ hits: 0, misses: 0, captures: 0 })
    expect(stats.profiler?.snapshot.steps).toBe(0)
    expect(stats.variants.experts).toHaveLength(2)
    using eager = layer.enqueue(x)
    await same(out, eager)
    expect(layer.performanceStats()).toMatchObject({ steps: 1, recordedSteps: 5 })
  })

  test('the graph holds weights and scratch memory: the layer, its stream and all tensors may go before it', async () => {
    using home = Stream.create({ device })
    const layer = await MoELayer.create({ ...shape, stream: home })
    using stream = Stream.create({ device })
    const x = tensor(20, 1)
    using out = blank(20)
    using want = blank(20)
    layer.enqueue(x, { out: want })
    const graph = Graph.capture(stream, () => void layer.enqueue(x, { out, stream }))
    graph.launch()
    layer.dispose()
    home.dispose()
    x.dispose()
    expect(() => layer.enqueue(x, { out })).toThrow(DisposedError)
    await same(out, want)
    await rewrite(out, 3)
    graph.launch(Stream.default(device))
    await same(out, want)
    graph.launch()
    graph.dispose()
    await same(out, want)
    // And nothing is left of it: see afterEach.
  })

  test.each(Object.entries(ways))('a layer that is disposed of while its step is recorded, %s', async (_, way) => {
    await using other = await MoELayer.create({ ...shape, seed: 2 })
    using stream = Stream.create({ device })
    using x = tensor(9, 1)
    using out = blank(9)
    using next = blank(9)
    using want = blank(9)
    const make = () => MoELayer.create({ ...shape, ...way, seed: 1 })
    const step = (layer: MoELayer) => {
      layer.enqueue(x, { out, stream })
      layer.dispose()
      other.enqueue(out, { out: next, stream })
    }
    const layer = await make()
    // Its last steps that run are on the stream that is recorded.
    for (let i = 0; i < 3; i++) layer.enqueue(x, { out, stream })
    other.enqueue(out, { out: want, stream })
    using graph = Graph.capture(stream, () => step(layer))
    const undone = await make()
    undone.enqueue(x, { out, stream })
    const failing = () => {
      step(undone)
      throw new Error('behind')
    }
    expect(() => Graph.capture(stream, failing)).toThrow(/behind$/)
    for (let i = 0; i < 3; i++) graph.launch()
    await same(next, want)
  })

  test('graphs that are made and disposed of leave no memory, nor do captures that fail', async () => {
    await using layer = await MoELayer.create(shape)
    using x = tensor(20, 1)
    using out = blank(20)
    layer.enqueue(x, { out })
    const stream = Stream.default(device)
    const { liveBytes, liveBuffers } = await liveMemory(device)
    for (let i = 0; i < 20; i++) {
      using graph = Graph.capture(stream, () => void layer.enqueue(x, { out }))
      graph.launch()
      expect(() =>
        Graph.capture(stream, () => {
          layer.enqueue(x, { out })
          throw new Error('behind')
        }),
      ).toThrow(/behind$/)
    }
    // What the layer was made from may have been live still: at the end it is not.
    const more = async () => {
      const now = await liveMemory(device)
      return now.liveBytes > liveBytes || now.liveBuffers > liveBuffers
    }
    await expect.poll(more, { timeout: 20_000, interval: 2 }).toBe(false)
  })

  test('larger steps that make the layer’s workspace grow do not touch what was recorded', async () => {
    await using layer = await MoELayer.create(shape)
    using x = tensor(5, 1)
    using large = tensor(300, 2)
    using out = blank(5)
    using want = layer.enqueue(x)
    const held = layer.performanceStats().workspaceBytes
    using graph = Graph.capture(Stream.default(device), () => void layer.enqueue(x, { out }))
    expect(layer.performanceStats().workspaceBytes).toBe(held)
    using wide = layer.enqueue(large)
    graph.launch()
    using again = layer.enqueue(large)
    await same(out, want)
    await same(again, wide)
  })

  test('two graphs of one layer, launched on two streams beside its own steps', async () => {
    await using layer = await MoELayer.create(shape)
    const streams = [Stream.create({ device }), Stream.create({ device })]
    const inputs = [tensor(60, 1), tensor(60, 2)]
    const outs = [blank(60), blank(60)]
    const wants = inputs.map((x) => layer.enqueue(x))
    const graphs = streams.map((stream, i) =>
      Graph.capture(stream, () => void layer.enqueue(inputs[i] ?? x, { out: outs[i] ?? x, stream })),
    )
    using x = tensor(100, 3)
    using want = layer.enqueue(x)
    using out = blank(100)
    for (let i = 0; i < 40; i++) {
      for (const graph of graphs) graph.launch()
      layer.enqueue(x, { out })
    }
    for (const [i, got] of outs.entries()) await same(got, wants[i] ?? got)
    await same(out, want)
    for (const each of [...graphs, ...inputs, ...outs, ...wants, ...streams]) each.dispose()
  })

  test('a step on a stream that is forked into the recording and joined again', async () => {
    await using layer = await MoELayer.create(shape)
    using stream = Stream.create({ device })
    using side = Stream.create({ device })
    using forked = Event.create(device)
    using joined = Event.create(device)
    using x = tensor(30, 1)
    using y = tensor(30, 2)
    using wantX = layer.enqueue(x)
    using wantY = layer.enqueue(y)
    using outX = blank(30)
    using outY = blank(30)
    using graph = Graph.capture(stream, () => {
      forked.record(stream)
      side.wait(forked)
      layer.enqueue(x, { out: outX, stream })
      layer.enqueue(y, { out: outY, stream: side })
      joined.record(side)
      stream.wait(joined)
    })
    for (let i = 0; i < 20; i++) graph.launch()
    await same(outX, wantX)
    await same(outY, wantY)
  })

  test('what cannot be recorded is refused by name, and the layer serves on', async () => {
    await using layer = await MoELayer.create({ ...shape, graphs: { captureAfter: 1 } })
    using x = tensor(4, 1)
    using out = blank(4)
    using other = blank(5)
    using want = layer.enqueue(x)
    const stream = Stream.default(device)
    expect(() => Graph.capture(stream, () => void layer.enqueue(x))).toThrow(/pass them as `out`/)
    expect(() => Graph.capture(stream, () => void layer.enqueue(x))).toThrow(GraphCaptureError)
    expect(() => Graph.capture(stream, () => void layer.enqueue(x, { out: other }))).toThrow(/out/)
    let refused: Promise<unknown> | undefined
    using graph = Graph.capture(stream, () => {
      refused = expect(layer.forward(x, { out })).rejects.toThrow(
        expect.objectContaining({
          name: 'GraphCaptureError',
          message: expect.stringMatching(/^stream: .* use enqueue$/),
        }),
      )
      layer.enqueue(x, { out })
    })
    await refused
    graph.launch()
    await same(out, want)
    const { output } = await layer.forward(x)
    await same(output, want)
    output.dispose()
    expect(layer.performanceStats()).toMatchObject({ measuredSteps: 1, recordedSteps: 1 })
  })
})
