// Work of somebody else that fails on a layer's stream. On the CPU that is the end of the stream, so the layer says so, and is dead; a layer on
// another stream is not concerned. (On CUDA indices out of range are not followed, and what does fail there fails the device.)
import { expect, test } from 'vitest'
import { GroupedExperts, MoELayer, type MoELayerOptions, Router, Stream, Tensor } from '../../src/index.js'

const shape: MoELayerOptions = { inputDim: 16, hiddenDim: 8, numExperts: 4, topK: 2, device: 'cpu' }

test.each([
  ['eager', {}],
  ['scheduled', { strategy: 'tiered', graphs: { captureAfter: 1 }, profiler: true }],
] as const)('%s: the forward that meets it rejects, later calls say that the layer is dead', async (_, options) => {
  const stream = Stream.create({ device: 'cpu' })
  const layer = await MoELayer.create({ ...shape, ...options, stream })
  const elsewhere = await MoELayer.create({ ...shape, stream: Stream.create({ device: 'cpu' }) })
  const on = { device: 'cpu', stream } as const
  const x = Tensor.randn([6, 16], on)
  layer.enqueue(x).dispose()

  const experts = GroupedExperts.random({
    kind: 'gated',
    numExperts: 4,
    inputDim: 16,
    hiddenDim: 8,
    outputDim: 16,
    dtype: 'f32',
    ...on,
  })
  using logits = Tensor.randn([6, 4], on)
  const routed = new Router({ numExperts: 4, topK: 2, ...on }).route(null, logits, { stream })
  await routed.offsets.write(Int32Array.of(0, 1e6, 2e6, 3e6, 4e6))
  experts.forward(x, routed, { stream }).dispose()

  await expect(layer.forward(x)).rejects.toThrow(/^offsets\[1\] is 1000000/)
  const dead = {
    name: 'DeviceError',
    code: 'ERR_NEXUS_DEVICE',
    message: expect.stringMatching(/^this MoELayer is dead, .*: work on its stream has failed: offsets\[1\]/),
  }
  expect(() => layer.enqueue(x)).toThrow(expect.objectContaining(dead))
  await expect(layer.forward(x)).rejects.toMatchObject(dead)
  expect(() => layer.performanceStats()).toThrow(expect.objectContaining(dead))
  layer.dispose()
  expect(() => layer.enqueue(x)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))

  const { output } = await elsewhere.forward(new Float32Array(32))
  expect(output.shape).toEqual([2, 16])
  for (const each of [output, elsewhere, routed, experts, x]) each.dispose()
})
