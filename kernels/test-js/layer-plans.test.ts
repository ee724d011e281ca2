// Plans and recorded steps of a layer through the raw addon: every strategy, eager and replayed, has the bytes of the fused step; sizes are those of
// the step's tokens, never of the bucket; wrong combinations are refused by name.
import { afterAll, describe, expect, it } from 'vitest'
import {
  binding,
  bufferOf,
  type LayerPlanHandle,
  laneSetOf,
  type RawMlpDesc,
  type RawRouterDesc,
  strategyKinds,
  streamOf,
} from '../lib/binding-entry.js'
import { LaneSet, Stream, Tensor } from '../lib/index.js'
import { devices } from './devices.js'
import { gatedMlp, plainRouter } from './raw-descriptions.js'

const invalid = (message: RegExp) =>
  expect.objectContaining({ code: 'ERR_NEXUS_INVALID_ARGUMENT', message: expect.stringMatching(message) })

describe.each(devices)('layer plans and graphs on $title', ({ name: device, skip }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    const [experts, topK, input, hidden, output] = [6, 2, 24, 40, 24]
    const index = device === 'cpu' ? -1 : 0
    const { core, native, profiler } = binding()
    const made: Disposable[] = []
    const keep = <T extends Disposable>(resource: T): T => {
      made.push(resource)
      return resource
    }
    afterAll(() => {
      for (const resource of made.reverse()) resource[Symbol.dispose]()
    })
    const router: RawRouterDesc = plainRouter(experts, topK)
    const mlp: RawMlpDesc = gatedMlp({ experts, input, hidden, output })
    function setup() {
      const stream = keep(Stream.create({ device }))
      const normal = (shape: number[], seed: number) => keep(Tensor.randn(shape, { stream, seed }))
      const layer = core.layerCreate(
        index,
        { router, routerDtype: 0, scaleInput: false, experts: mlp, combine: 0, shared: null, sharedGate: false },
        {
          routerWeight: bufferOf(normal([experts, input], 2)),
          routerBias: null,
          selectBias: null,
          expertWeight: [
            bufferOf(normal([experts, 2 * hidden, input], 3)),
            bufferOf(normal([experts, output, hidden], 4)),
          ],
          expertBias: [null, null],
          sharedWeight: [],
          sharedBias: [],
          sharedGate: null,
        },
      )
      made.push({ [Symbol.dispose]: () => native.release(layer) })
      const lanes = keep(new LaneSet({ stream, laneOf: [0, 1, 2, 0, 1, 2], lanes: 3, shares: [2, 3, 3] }))
      const sides = [0, 1, 2].map(() => streamOf(keep(Stream.create({ device }))))
      const plan = (strategy: number): LayerPlanHandle =>
        core.planCreate(layer, {
          strategy,
          lanes: strategy === 0 ? null : laneSetOf(lanes),
          streams: strategy === 1 || strategy === 2 ? sides : [],
          sharedStream: null,
        })
      return { stream, on: streamOf(stream), layer, lanes, sides, plan }
    }
    const bytes = async (tensor: Tensor): Promise<Buffer> => Buffer.from((await tensor.toArray()).slice().buffer)

    it.each(strategyKinds)('%s: eager and replayed, also after experts have moved, as the fused step', async (name) => {
      const { stream, on, layer, lanes, plan } = setup()
      const ring = profiler.countRingCreate(index, experts, 64)
      const handle = plan(strategyKinds.indexOf(name))
      const bucket = core.tokenBucket(17)
      expect(bucket).toBe(24)
      const warm = keep(Tensor.zeros([bucket, input], { stream }))
      const warmOut = keep(Tensor.empty([bucket, output], { stream }))
      core.layerEnqueue(layer, on, bufferOf(warm), bucket, null, bufferOf(warmOut), handle, ring)
      const graph = core.layerCapture(layer, on, bucket, false, handle, ring)
      expect(core.layerGraphInfo(graph).nodes).toBeGreaterThan(1)
      const counts: number[][] = []
      for (const [i, tokens] of [24, 1, 17, 0, 20].entries()) {
        const x = keep(Tensor.randn([tokens, input], { stream, seed: 10 + i }))
        const [fused, eager, replayed, again] = [0, 1, 2, 3].map(() => {
          const out = keep(Tensor.zeros([tokens, output], { stream }))
          return { out, buffer: bufferOf(out) }
        })
        if (!fused || !eager || !replayed || !again) throw new Error('an output is missing')
        core.layerEnqueue(layer, on, bufferOf(x), tokens, null, fused.buffer, null, null)
        core.layerEnqueue(layer, on, bufferOf(x), tokens, null, eager.buffer, handle, ring)
        core.layerReplay(layer, graph, on, bufferOf(x), tokens, null, replayed.buffer)
        const stats = await core.layerReplayForward(
          layer,
          graph,
          on,
          bufferOf(x),
          tokens,
          null,
          again.buffer,
          null,
          null,
        )
        expect(stats.counts.reduce((a, b) => a + b)).toBe(tokens * topK)
        expect(stats).toMatchObject({ routerMs: -1, expertsMs: -1, sharedMs: -1, combineMs: -1 })
        expect(stats.totalMs).toBeGreaterThanOrEqual(0)
        const expected = await bytes(fused.out)
        expect(Buffer.compare(await bytes(eager.out), expected)).toBe(0)
        // A recorded step has the bits of its bucket, whatever its tokens.
        const ofBucket = core.tokenBucket(tokens) === bucket ? expected : await bytes(replayed.out)
        for (const { out } of [replayed, again]) expect(Buffer.compare(await bytes(out), ofBucket)).toBe(0)
        counts.push([...stats.counts], [...stats.counts], [...stats.counts])
        lanes.update({ laneOf: [i % 3, 2, 1, 0, 0, (i + 1) % 3] })
      }
      const read = profiler.countRingRead(ring, 1)
      expect([...read.tokens]).toEqual([24, 1, 17, 0, 20].flatMap((n) => [n, n, n]))
      expect([...read.counts]).toEqual(counts.flat())
      native.release(graph)
      native.release(handle)
      native.release(ring)
    })

    it('sizes are checked by the tokens of the step', async () => {
      const { stream, on, layer } = setup()
      const x = bufferOf(keep(Tensor.zeros([24, input], { stream })))
      const out = bufferOf(keep(Tensor.zeros([24, output], { stream })))
      const few = bufferOf(keep(Tensor.zeros([3, input], { stream })))
      const logits = bufferOf(keep(Tensor.zeros([3, experts], { stream })))
      core.layerEnqueue(layer, on, x, 24, null, out, null, null)
      const graph = core.layerCapture(layer, on, 24, false, null, null)
      expect(() => core.layerReplay(layer, graph, on, few, 3, null, out)).not.toThrow()
      expect(() => core.layerReplay(layer, graph, on, few, 4, null, out)).toThrow(invalid(/^x: needs/))
      expect(() => core.layerReplay(layer, graph, on, x, 4, null, few)).toThrow(invalid(/^out: needs/))
      expect(() => core.layerReplay(layer, graph, on, x, 25, null, out)).toThrow(invalid(/^x: needs/))
      expect(() => core.layerReplay(layer, graph, on, few, 3, logits, out)).toThrow(invalid(/^logits/))
      expect(() => core.layerReplay(layer, graph, on, x, -1, null, out)).toThrow(invalid(/^tokens: /))
      const other = setup().layer
      expect(() => core.layerReplay(other, graph, on, few, 3, null, out)).toThrow(invalid(/^graph/))
      await native.streamSynchronize(on)
      native.release(graph)
      expect(() => core.layerReplay(layer, graph, on, few, 3, null, out)).toThrow(
        expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }),
      )
    })

    it('plans and captures that do not fit together are refused by name', () => {
      const { on, layer, lanes, sides, stream } = setup()
      const create = (plan: object) => () =>
        core.planCreate(layer, {
          strategy: 1,
          lanes: laneSetOf(lanes),
          streams: sides,
          sharedStream: null,
          ...plan,
        })
      expect(create({})).not.toThrow()
      expect(create({ strategy: 4 })).toThrow(invalid(/^plan\.strategy: /))
      expect(create({ lanes: null })).toThrow(invalid(/^plan\.lanes: expected a lane set/))
      expect(create({ strategy: 0, streams: [] })).toThrow(invalid(/^plan\.lanes: expected null/))
      expect(create({ streams: sides.slice(1) })).toThrow(invalid(/^plan\.streams: expected 3 streams, got 2$/))
      expect(create({ strategy: 3 })).toThrow(invalid(/^plan\.streams: expected 0 streams, got 3$/))
      expect(create({ streams: [...sides.slice(1), laneSetOf(lanes)] })).toThrow(invalid(/^plan\.streams\[2\]: /))
      expect(create({ streams: null })).toThrow(TypeError)
      const wrong = keep(new LaneSet({ stream, laneOf: [0, 1, 2], lanes: 3 }))
      expect(create({ lanes: laneSetOf(wrong) })).toThrow(invalid(/^plan\.lanes: expected lanes of 6 experts, got/))
      expect(() => core.layerCapture(layer, on, 17, false, null, null)).toThrow(invalid(/^bucket/))
      const ring = profiler.countRingCreate(index, experts + 1, 4)
      expect(() => core.layerCapture(layer, on, 16, false, null, ring)).toThrow(invalid(/^ring: /))
      native.release(ring)
      native.graphBegin(on)
      expect(() => core.layerCapture(layer, on, 16, false, null, null)).toThrow(
        expect.objectContaining({ code: 'ERR_NEXUS_GRAPH_CAPTURE' }),
      )
      native.graphAbort(on)
    })
  })
})
