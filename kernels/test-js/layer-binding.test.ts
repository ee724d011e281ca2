// The raw data-plane functions: the one-call layer, the same step composed by hand from the primitives, and the unfused operations of the
// baseline agree; every size is checked against its buffer. (What each kernel computes is tested in C++ against its oracle.)
import { afterAll, describe, expect, it } from 'vitest'
import { binding, bufferOf, type RawMlpDesc, type RawRouterDesc, streamOf } from '../lib/binding-entry.js'
import { Stream, Tensor } from '../lib/index.js'
import { devices } from './devices.js'
import { gatedMlp, plainRouter } from './raw-descriptions.js'

describe.each(devices)('layer and primitives on $title', ({ name: device, skip }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    const [experts, topK, input, hidden, output, tokens] = [5, 2, 24, 40, 24, 37]
    const index = device === 'cpu' ? -1 : 0
    const { core, native, routerKernels } = binding()
    const made: Tensor[] = []
    const keep = (tensor: Tensor): Tensor => {
      made.push(tensor)
      return tensor
    }
    const normal = (shape: number[], seed: number) => keep(Tensor.randn(shape, { device, seed }))
    const space = (shape: number[], dtype: 'f32' | 'i32' = 'f32') => keep(Tensor.empty(shape, { device, dtype }))
    const stream = () => streamOf(Stream.default(device))
    afterAll(() => {
      for (const tensor of made) tensor.dispose()
    })

    const router: RawRouterDesc = plainRouter(experts, topK)
    const mlp: RawMlpDesc = gatedMlp({ experts, input, hidden, output })
    const setup = () => ({
      x: normal([tokens, input], 1),
      routerWeight: normal([experts, input], 2),
      first: normal([experts, 2 * hidden, input], 3),
      second: normal([experts, output, hidden], 4),
      firstBias: normal([experts, 2 * hidden], 5),
    })
    const layerOf = (t: ReturnType<typeof setup>) =>
      core.layerCreate(
        index,
        { router, routerDtype: 0, scaleInput: false, experts: mlp, combine: 0, shared: null, sharedGate: false },
        {
          routerWeight: bufferOf(t.routerWeight),
          routerBias: null,
          selectBias: null,
          expertWeight: [bufferOf(t.first), bufferOf(t.second)],
          expertBias: [bufferOf(t.firstBias), null],
          sharedWeight: [],
          sharedBias: [],
          sharedGate: null,
        },
      )
    /** Routed by hand. */
    const route = (t: ReturnType<typeof setup>) => {
      const r = {
        logits: space([tokens, experts]),
        ids: space([tokens, topK], 'i32'),
        weights: space([tokens, topK]),
        counts: space([experts], 'i32'),
        offsets: space([experts + 1], 'i32'),
        order: space([tokens * topK], 'i32'),
        workspace: space([Math.ceil(routerKernels.routeWorkspaceBytes(index, router, tokens) / 4)]),
      }
      const [x, w, logits] = [t.x, t.routerWeight, r.logits].map((tensor) => bufferOf(tensor))
      if (!x || !w || !logits) throw new Error('buffers are missing')
      routerKernels.routerLogits(stream(), x, 0, w, 0, null, tokens, input, experts, logits)
      routerKernels.route(
        stream(),
        router,
        logits,
        null,
        tokens,
        bufferOf(r.ids),
        bufferOf(r.weights),
        bufferOf(r.counts),
        bufferOf(r.offsets),
        bufferOf(r.order),
        bufferOf(r.workspace),
        null,
      )
      return r
    }
    const ints = async (tensor: Tensor): Promise<Int32Array> => {
      const array = await tensor.toArray()
      if (!(array instanceof Int32Array)) throw new Error('expected int32')
      return array
    }

    it('one call gives the bytes, the routing and the counts of the step composed by hand', async () => {
      const t = setup()
      const layer = layerOf(t)
      const [out, ids, weights] = [space([tokens, output]), space([tokens, topK], 'i32'), space([tokens, topK])]
      const stats = await core.layerForward(
        layer,
        stream(),
        bufferOf(t.x),
        tokens,
        null,
        bufferOf(out),
        bufferOf(ids),
        bufferOf(weights),
        null,
        null,
      )
      const r = route(t)
      const rows = space([tokens * topK, output])
      const workspace = space([Math.ceil(routerKernels.mlpWorkspaceBytes(index, mlp, tokens * topK) / 4)])
      routerKernels.groupedMlp(
        stream(),
        mlp,
        [bufferOf(t.first), bufferOf(t.second)],
        [bufferOf(t.firstBias), null],
        bufferOf(t.x),
        tokens,
        topK,
        bufferOf(r.offsets),
        bufferOf(r.order),
        null,
        bufferOf(rows),
        bufferOf(workspace),
        null,
        -1,
      )
      const sum = space([tokens, output])
      const [rowsB, weightsB, sumB] = [bufferOf(rows), bufferOf(r.weights), bufferOf(sum)]
      routerKernels.combine(stream(), 0, 0, rowsB, weightsB, null, null, tokens, output, topK, sumB)
      expect(await out.toArray()).toEqual(await sum.toArray())
      expect(await ids.toArray()).toEqual(await r.ids.toArray())
      expect(await weights.toArray()).toEqual(await r.weights.toArray())
      expect(stats.counts).toEqual(await r.counts.toArray())
      expect(stats.counts.reduce((a, b) => a + b)).toBe(tokens * topK)
      const { routerMs, expertsMs, sharedMs, combineMs, totalMs } = stats
      for (const ms of [routerMs, expertsMs, sharedMs, combineMs]) expect(ms).toBeGreaterThanOrEqual(0)
      expect(routerMs + expertsMs + sharedMs + combineMs).toBeCloseTo(totalMs, 2)

      // Stream-ordered without a promise: the same bytes again.
      const again = space([tokens, output])
      core.layerEnqueue(layer, stream(), bufferOf(t.x), tokens, null, bufferOf(again), null, null)
      native.release(layer)
      expect(await again.toArray()).toEqual(await out.toArray())
      expect(() => core.layerWeightBytes(layer)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))
    })

    it('expert by expert, unfused, the sum is the same up to rounding', async () => {
      const t = setup()
      const r = route(t)
      const [order, offsets, counts] = [bufferOf(r.order), await ints(r.offsets), await ints(r.counts)]
      const acc = keep(Tensor.zeros([tokens, output], { device }))
      for (const [expert, n] of counts.entries()) {
        const at = offsets[expert] ?? 0
        const range = keep(Tensor.from([0, n], [2], { device, dtype: 'i32' }))
        const [x, h, g, y] = [
          [n, input],
          [n, 2 * hidden],
          [n, hidden],
          [n, output],
        ].map((shape) => bufferOf(space(shape)))
        if (!x || !h || !g || !y) throw new Error('buffers are missing')
        const [s, first, second] = [stream(), bufferOf(t.first), bufferOf(t.second)]
        const [o, bias] = [bufferOf(range), bufferOf(t.firstBias)]
        routerKernels.gatherRows(s, 0, bufferOf(t.x), order, at, n, topK, input, x)
        const w1 = expert * 2 * hidden * input
        routerKernels.linear(s, 0, x, n, input, 2 * hidden, first, w1, bias, expert * 2 * hidden, h, o)
        routerKernels.activate(s, 0, 16, 7, 1.702, h, n, hidden, g)
        routerKernels.linear(s, 0, g, n, hidden, output, second, expert * output * hidden, null, 0, y, o)
        routerKernels.indexAdd(s, 0, y, bufferOf(r.weights), order, at, n, topK, output, bufferOf(acc))
      }
      const layer = layerOf(t)
      const out = space([tokens, output])
      core.layerEnqueue(layer, stream(), bufferOf(t.x), tokens, null, bufferOf(out), null, null)
      const [a, b] = [await acc.toFloat32Array(), await out.toFloat32Array()]
      native.release(layer)
      const norm = (v: Float32Array) => Math.sqrt(v.reduce((sum, value) => sum + value * value, 0))
      expect(norm(a.map((value, i) => value - (b[i] ?? 0))) / norm(b)).toBeLessThan(1e-6)
    })

    it('sizes are checked against the buffers, by name', () => {
      const t = setup()
      const layer = layerOf(t)
      const out = space([tokens, output])
      const invalid = (message: RegExp) =>
        expect.objectContaining({ code: 'ERR_NEXUS_INVALID_ARGUMENT', message: expect.stringMatching(message) })
      const [x, y] = [bufferOf(t.x), bufferOf(out)]
      const bytes = tokens * input * 4
      expect(() => core.layerEnqueue(layer, stream(), x, tokens + 1, null, y, null, null)).toThrow(
        invalid(new RegExp(`^x: needs ${bytes + input * 4} bytes at offset 0, the buffer has ${bytes}$`)),
      )
      expect(() =>
        core.layerEnqueue(layer, stream(), x, 1, bufferOf(keep(Tensor.zeros([1], { device }))), y, null, null),
      ).toThrow(invalid(/^logits: needs/))
      expect(() => core.layerEnqueue(layer, stream(), x, 1, null, bufferOf(space([1])), null, null)).toThrow(
        invalid(/^out: needs/),
      )
      expect(() => core.layerEnqueue(layer, stream(), x, -1, null, y, null, null)).toThrow(invalid(/^tokens: /))
      const small = bufferOf(space([2]))
      expect(() => core.layerForward(layer, stream(), x, tokens, null, y, small, null, null, null)).toThrow(
        invalid(/^idsOut: /),
      )
      expect(() => routerKernels.combine(stream(), 0, 0, y, null, null, null, tokens, output, 2, y)).toThrow(
        invalid(/^rows: /),
      )
      expect(() => routerKernels.variant(index, { ...mlp, activation: 1 }, 0, 4)).toThrow(
        invalid(/^desc\.activation: /),
      )
      expect(routerKernels.variant(index, mlp, 0, 4)).toMatch(/\w/)
      native.release(layer)
    })
  })
})
