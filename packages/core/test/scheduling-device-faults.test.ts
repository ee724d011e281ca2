/** Failures of the native side, played by a step that throws what it would: recording falls back, a device error is the layer's end. */
import { binding } from '@nexus/native/binding'
import { afterEach, expect, test, vi } from 'vitest'
import { DeviceError, MoELayer, type MoELayerOptions, Tensor } from '../src/index.js'

const shape: MoELayerOptions = { inputDim: 16, hiddenDim: 8, numExperts: 4, topK: 2, device: 'cpu' }
const raw = (code: string, message: string, extra: object = {}) => Object.assign(new Error(message), { code, ...extra })

afterEach(() => {
  vi.restoreAllMocks()
})

test.each([
  ['capture-failed', raw('ERR_NEXUS_GRAPH_CAPTURE', 'a stream was not joined')],
  ['out-of-memory', raw('ERR_NEXUS_OUT_OF_MEMORY', 'no memory for a graph', { requested: 1, available: 0 })],
  ['unsupported', raw('ERR_NEXUS_UNSUPPORTED', 'this driver has no such graphs')],
] as const)(
  '%s: steps go on eagerly, with the reason, and recording is not tried at every step',
  async (reason, error) => {
    await using plain = await MoELayer.create(shape)
    await using layer = await MoELayer.create({ ...shape, strategy: 'cooperative', graphs: { captureAfter: 1 } })
    using x = Tensor.randn([5, 16], { device: 'cpu' })
    const { output: expected } = await plain.forward(x)
    using _ = expected
    const capture = vi.spyOn(binding().core, 'layerCapture').mockImplementation(() => {
      throw error
    })
    for (let i = 0; i < 10; i++) {
      using output = layer.enqueue(x)
      expect(await output.toArray()).toEqual(await expected.toArray())
    }
    expect(capture).toHaveBeenCalledTimes(1)
    const { graphs } = layer.performanceStats()
    expect(graphs?.fallbacks[reason]).toBeGreaterThan(0)
    expect(graphs?.lastFallback).toContain(error.message)
    expect(graphs?.hits).toBe(0)
  },
)

test.each([
  ['eager', {}],
  ['scheduled', { strategy: 'cooperative', profiler: true }],
] as const)('%s: a device error is the end of the layer, clearly', async (_, options) => {
  await using layer = await MoELayer.create({ ...shape, ...options })
  using x = Tensor.randn([5, 16], { device: 'cpu' })
  layer.enqueue(x).dispose()
  vi.spyOn(binding().core, 'layerEnqueue').mockImplementationOnce(() => {
    throw raw('ERR_NEXUS_DEVICE', 'an illegal memory access', { nativeError: 'cudaErrorIllegalAddress' })
  })
  expect(() => layer.enqueue(x)).toThrow(DeviceError)
  // The fault is over, the layer is dead all the same: what the device holds is not known.
  expect(() => layer.enqueue(x)).toThrow(/this MoELayer is dead.*an illegal memory access/)
  await expect(layer.forward(x)).rejects.toMatchObject({
    code: 'ERR_NEXUS_DEVICE',
    nativeError: 'cudaErrorIllegalAddress',
  })
  expect(() => layer.performanceStats()).toThrow(DeviceError)
  layer.dispose()
  expect(() => layer.enqueue(x)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))
})

test('a forward that the device fails is the end too', async () => {
  await using layer = await MoELayer.create({ ...shape, graphs: { captureAfter: 1 } })
  using x = Tensor.randn([5, 16], { device: 'cpu' })
  layer.enqueue(x).dispose()
  vi.spyOn(binding().core, 'layerReplayForward').mockImplementationOnce(() =>
    Promise.reject(raw('ERR_NEXUS_DEVICE', 'an unspecified launch failure')),
  )
  await expect(layer.forward(x)).rejects.toThrow(DeviceError)
  expect(() => layer.enqueue(x)).toThrow(/this MoELayer is dead/)
})

test('what a plan needs cannot be made: the layer is not made, and nothing is left', async () => {
  vi.spyOn(binding().core, 'planCreate').mockImplementation(() => {
    throw raw('ERR_NEXUS_OUT_OF_MEMORY', 'no memory for a lane table')
  })
  const made = MoELayer.create({ ...shape, strategy: 'streams', graphs: true, profiler: true })
  await expect(made).rejects.toMatchObject({ code: 'ERR_NEXUS_OUT_OF_MEMORY' })
})
