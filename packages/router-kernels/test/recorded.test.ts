// Steps that allocate nothing: results overwritten in place, on a stream of the caller's choice, in lanes, and recorded as graphs. Every way gives
// the bits of the plain one.
import { DisposedError, Event, Graph, GraphCaptureError, LaneSet, Stream, Tensor } from '@nexus/native'
import { binding, countRingHandle, deviceIndex } from '@nexus/native/binding'
import { expect, test } from 'vitest'
import { combine, GroupedExperts, type RoutedTokens, Router } from '../src/index.js'
import { liveMemory, onEachDevice } from './support/devices.js'

const [numExperts, topK, tokens] = [6, 2, 23]
const dims = { inputDim: 16, hiddenDim: 24, outputDim: 8 }

onEachDevice('steps without allocation', (device) => {
  function setup(stream?: Stream) {
    const at = { device, ...(stream && { stream }) }
    const weight = Tensor.randn([numExperts, dims.inputDim], { ...at, seed: 1 })
    const router = new Router({ numExperts, topK, weight, ...at })
    const experts = GroupedExperts.random({ kind: 'gated', numExperts, ...dims, dtype: 'f32', seed: 2, ...at })
    const x = Tensor.randn([tokens, dims.inputDim], { ...at, seed: 3 })
    const dispose = (): void => {
      for (const resource of [weight, router, experts, x]) resource.dispose()
    }
    return { router, experts, x, [Symbol.dispose]: dispose }
  }
  const bytes = async (tensor: Tensor): Promise<Buffer> => Buffer.from((await tensor.toArray()).slice().buffer)
  const parts = ['expertIds', 'weights', 'counts', 'offsets', 'order'] as const
  const same = async (a: Tensor, b: Tensor): Promise<void> =>
    expect(Buffer.compare(await bytes(a), await bytes(b))).toBe(0)
  const sameRouting = async (a: RoutedTokens, b: RoutedTokens): Promise<void> => {
    for (const part of parts) await same(a[part], b[part])
  }

  test('route and forward overwrite `out`, on another stream than their own, to the same bits', async () => {
    using s = setup()
    using routed = s.router.route(s.x)
    using rows = s.experts.forward(s.x, routed)
    using stream = Stream.create({ device })
    using other = Tensor.randn([tokens, dims.inputDim], { device, seed: 9 })
    using out = s.router.route(other)
    using rowsOut = Tensor.zeros([tokens * topK, dims.outputDim], { device })
    for (let i = 0; i < 3; i++) {
      expect(s.router.route(s.x, null, { stream, out })).toBe(out)
      expect(s.experts.forward(s.x, out, { stream, out: rowsOut })).toBe(rowsOut)
    }
    await sameRouting(out, routed)
    await same(rowsOut, rows)
  })

  test('once its workspace is there, a step holds no more memory than before', async () => {
    using s = setup()
    using out = s.router.route(s.x)
    using rows = s.experts.forward(s.x, out)
    const before = await liveMemory(device)
    for (let i = 0; i < 5; i++) {
      s.router.route(s.x, null, { out })
      s.experts.forward(s.x, out, { out: rows })
    }
    expect(await liveMemory(device)).toEqual(before)
  })

  test('a recorded step replays with new inputs, beside eager steps of the same experts on its stream', async () => {
    using stream = Stream.create({ device })
    using runner = Stream.create({ device })
    using s = setup(stream)
    using routed = s.router.route(s.x)
    using rows = s.experts.forward(s.x, routed)
    using y = combine(rows, routed, { stream })
    using graph = Graph.capture(stream, () => {
      s.router.route(s.x, null, { out: routed })
      s.experts.forward(s.x, routed, { out: rows })
      combine(rows, routed, { stream, out: y })
    })
    for (let i = 0; i < 10; i++) {
      using input = Tensor.randn([tokens, dims.inputDim], { device, seed: 100 + i })
      await s.x.write(await input.toFloat32Array())
      graph.launch(i % 2 === 0 ? stream : runner)
      // On the recorded stream at the same time: it must not use the workspace that the graph took.
      using eager = s.router.route(input)
      using eagerRows = s.experts.forward(input, eager)
      using eagerY = combine(eagerRows, eager, { stream })
      await same(y, eagerY)
      await sameRouting(routed, eager)
    }
  })

  test('what would allocate while it is recorded says what to do; the next capture works', async () => {
    using stream = Stream.create({ device })
    using s = setup(stream)
    using routed = s.router.route(s.x)
    using rows = Tensor.zeros([tokens * topK, dims.outputDim], { stream })
    const forward = () => void s.experts.forward(s.x, routed, { out: rows })
    expect(() => Graph.capture(stream, () => void s.router.route(s.x))).toThrow(/pass them as `out`$/)
    expect(() => Graph.capture(stream, () => void s.experts.forward(s.x, routed))).toThrow(/pass them as `out`$/)
    expect(() => Graph.capture(stream, forward)).toThrow(GraphCaptureError)
    expect(() => Graph.capture(stream, forward)).toThrow(
      /workspace cannot be allocated .* run the same call on it once/,
    )
    forward()
    // A capture that fails behind it gives the workspace back.
    expect(() =>
      Graph.capture(stream, () => {
        forward()
        throw new Error('behind')
      }),
    ).toThrow(/behind$/)
    using graph = Graph.capture(stream, () => {
      forward()
      forward()
    })
    using fresh = s.experts.forward(s.x, routed)
    graph.launch()
    await same(rows, fresh)
  })

  test('memory comes back when router, experts and graph are gone, in any order', async () => {
    const before = await liveMemory(device)
    const s = setup()
    const routed = s.router.route(s.x)
    const rows = s.experts.forward(s.x, routed)
    const stream = Stream.default(device)
    const graph = Graph.capture(stream, () => {
      s.router.route(s.x, null, { out: routed })
      s.experts.forward(s.x, routed, { out: rows })
    })
    s.experts.forward(s.x, routed, { out: rows })
    graph.launch()
    s[Symbol.dispose]()
    expect(() => s.experts.forward(s.x, routed)).toThrow(DisposedError)
    routed.dispose()
    graph.launch()
    graph.dispose()
    rows.dispose()
    expect(await liveMemory(device)).toEqual(before)
  })

  const laneOf = [0, 1, 2, 2, 1, 0]
  test.each([
    ['as dealt', laneOf],
    ['one lane with nothing', [0, 0, 2, 2, 0, 2]],
    ['one lane with all', [1, 1, 1, 1, 1, 1]],
  ])('lane by lane on streams of their own, eager and recorded: the same bits (%s)', async (_, dealt) => {
    using main = Stream.create({ device })
    const streams = [0, 1, 2].map(() => Stream.create({ device }))
    using s = setup(main)
    using routed = s.router.route(s.x)
    using expected = s.experts.forward(s.x, routed)
    using lanes = new LaneSet({ stream: main, laneOf: dealt, lanes: 3, trace: true })
    using out = Tensor.zeros([tokens * topK, dims.outputDim], { stream: main })
    using forked = Event.create(device)
    const joined = streams.map(() => Event.create(device))
    const step = () => {
      forked.record(main)
      for (const [lane, stream] of streams.entries()) {
        stream.wait(forked)
        s.experts.forward(s.x, routed, { stream, out, lanes, lane })
        joined[lane]?.record(stream)
      }
      for (const event of joined) main.wait(event)
    }
    step()
    await same(out, expected)
    const traced = await lanes.trace(main)
    expect(traced.map((units) => units.length > 0)).toEqual([0, 1, 2].map((lane) => dealt.includes(lane)))

    using graph = Graph.capture(main, step)
    using cleared = Tensor.zeros([tokens * topK, dims.outputDim], { stream: main })
    for (const table of [dealt, laneOf, [2, 2, 2, 1, 0, 1]]) {
      lanes.update({ laneOf: table })
      await out.write(await cleared.toFloat32Array())
      graph.launch()
      await same(out, expected)
    }
    for (const resource of [...joined, ...streams]) resource.dispose()
  })

  test('a lane leaves the rows of the others alone; all lanes in one launch have the same bits', async () => {
    using s = setup()
    using routed = s.router.route(s.x)
    using expected = s.experts.forward(s.x, routed)
    using lanes = new LaneSet({ stream: Stream.default(device), laneOf, lanes: 3, shares: [4, 2, 2] })
    using together = s.experts.forward(s.x, routed, { lanes })
    await same(together, expected)
    using out = Tensor.from(
      new Float32Array(tokens * topK * dims.outputDim).fill(-7),
      [tokens * topK, dims.outputDim],
      {
        device,
      },
    )
    s.experts.forward(s.x, routed, { lanes, lane: 1, out })
    const [all, one, ids] = [
      await expected.toFloat32Array(),
      await out.toFloat32Array(),
      await routed.expertIds.toArray(),
    ]
    for (const [i, value] of one.entries()) {
      const expert = ids[Math.floor(i / dims.outputDim)] ?? -1
      expect(value).toBe(laneOf[expert] === 1 ? all[i] : -7)
    }
  })

  test('a ring has the counts of every step, eager and replayed, in stream order', async () => {
    using stream = Stream.create({ device })
    using s = setup(stream)
    const handle = binding().profiler.countRingCreate(deviceIndex(device), numExperts, 16)
    const ring = { numExperts, [countRingHandle]: () => handle }
    using routed = s.router.route(s.x, null, { ring })
    using graph = Graph.capture(stream, () => void s.router.route(s.x, null, { ring, out: routed }))
    const expected: number[][] = [[...(await routed.counts.toArray())]]
    for (let i = 0; i < 3; i++) {
      using input = Tensor.randn([tokens, dims.inputDim], { device, seed: 50 + i })
      await s.x.write(await input.toFloat32Array())
      graph.launch()
      expected.push([...(await routed.counts.toArray())])
    }
    const read = binding().profiler.countRingRead(handle, 0)
    expect([...read.steps]).toEqual([0, 1, 2, 3])
    expect([...read.tokens]).toEqual([tokens, tokens, tokens, tokens])
    expect([...read.counts]).toEqual(expected.flat())
    binding().native.release(handle) // the graph keeps it
    expect(() => s.router.route(s.x, null, { ring })).toThrow(DisposedError)
    graph.launch()
    await stream.synchronize()
    const again = binding().profiler.countRingCreate(deviceIndex(device), numExperts, 2)
    s.router.route(s.x, null, { ring: { numExperts, [countRingHandle]: () => again }, out: routed })
    await stream.synchronize()
    expect(binding().profiler.countRingRead(again, 0)).toMatchObject({ lost: 0, next: 1 })
    binding().native.release(again)
  })

  test('wrong options are refused by name', () => {
    using s = setup()
    using routed = s.router.route(s.x)
    using small = s.router.route(Tensor.randn([2, dims.inputDim], { device }))
    using lanes = new LaneSet({ stream: Stream.default(device), laneOf, lanes: 3 })
    using few = new LaneSet({ stream: Stream.default(device), laneOf: [0], lanes: 1 })
    const forward = (options: object) => () => s.experts.forward(s.x, routed, options)
    expect(forward({ lane: 1 })).toThrow(/^lane must be given with lanes, got 1 without$/)
    expect(forward({ lanes, lane: 3 })).toThrow(/^lane: expected an integer from -1 to 2, got 3$/)
    expect(forward({ lanes, lane: 0 })).toThrow(/^out must be a Tensor where a lane is given/)
    expect(forward({ lanes: few })).toThrow(/^lanes must be of 6 experts, got lanes of 1$/)
    expect(forward({ lanes: {} })).toThrow(/^lanes must be a LaneSet, got an object$/)
    expect(forward({ out: s.x })).toThrow(/^out must have shape \[46, 8\]/)
    expect(forward({ stream: 1 })).toThrow(/stream/)
    const route = (options: object) => () => s.router.route(s.x, null, options)
    expect(route({ out: small })).toThrow(/^out\.tokens must be 23, got 2$/)
    expect(route({ out: 5 })).toThrow(/^out must be what Router\.route returns, got 5$/)
    expect(route({ ring: {} })).toThrow(/^ring: expected a CountRing, got an object$/)
    expect(route({ rings: 1 })).toThrow(/^route options: unknown option 'rings'; did you mean 'ring'\?$/)
    lanes.dispose()
    expect(forward({ lanes })).toThrow(DisposedError)
  })
})
