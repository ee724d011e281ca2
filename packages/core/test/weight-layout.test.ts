/** How weights lie is a matter of kernels alone: outputs have the same bytes, and who wants rows gets rows. */
import { describe, expect, test } from 'vitest'
import { cudaMissing, liveMemory, onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  BaselineMoELayer,
  type DeviceName,
  MoELayer,
  type MoELayerOptions,
  routers,
  Tensor,
  UnsupportedError,
} from '../src/index.js'
import { tensorsInPanels } from '../src/weights.js'

const counts = { numExperts: 8, topK: 2 }
const small: MoELayerOptions = { inputDim: 128, hiddenDim: 64, ...counts, seed: 11 }

/** A step's output bytes. */
async function bytesOf(layer: MoELayer | BaselineMoELayer, tokens: number, device: DeviceName): Promise<Buffer> {
  using x = Tensor.randn([tokens, layer.config.experts.inputDim], {
    dtype: layer.config.experts.dtype,
    device,
    seed: tokens,
  })
  const { output } = await layer.forward(x)
  const bits = await output.toArray()
  output.dispose()
  return Buffer.from(bits.buffer, bits.byteOffset, bits.byteLength)
}

onEachDevice('weights of another layer', (device) => {
  test('are shared: the same bytes, and no memory for weights', async () => {
    await using first = await MoELayer.create({ ...small, device })
    const want = await bytesOf(first, 17, device)
    const before = await liveMemory(device)
    await using second = await MoELayer.create({ ...small, device, weightsFrom: first, graphs: { captureAfter: 1 } })
    expect(await liveMemory(device)).toEqual(before)
    expect(second.performanceStats().weightLayout).toBe(first.performanceStats().weightLayout)
    expect((await bytesOf(second, 17, device)).equals(want)).toBe(true)
  })

  test('live as long as the last of those that use them', async () => {
    const before = await liveMemory(device)
    const first = await MoELayer.create({ ...small, device })
    const want = await bytesOf(first, 5, device)
    const second = await MoELayer.create({ ...small, device, weightsFrom: first })
    first.dispose()
    expect((await bytesOf(second, 5, device)).equals(want)).toBe(true)
    const third = await MoELayer.create({ ...small, device, weightsFrom: second })
    second.dispose()
    expect((await bytesOf(third, 5, device)).equals(want)).toBe(true)
    third.dispose()
    expect(await liveMemory(device)).toEqual(before)
  })

  test('have to be of the same layer, and nothing else may be said of them', async () => {
    await using first = await MoELayer.create({ ...small, device })
    const from = (options: object) => MoELayer.create({ ...small, device, weightsFrom: first, ...options })
    await expect(from({ hiddenDim: 128 })).rejects.toThrow(/^experts must be that of weightsFrom/)
    await expect(from({ shared: { hiddenDim: 64 } })).rejects.toThrow(/^shared must be that of weightsFrom/)
    await expect(from({ adoptWeights: true })).rejects.toThrow(/^adoptWeights must not be given with weightsFrom/)
    await expect(from({ weightLayout: 'rows' })).rejects.toThrow(/^weightLayout must not be given with weightsFrom/)
    await expect(from({ weightsFrom: {} })).rejects.toThrow(/^weightsFrom must be a MoELayer/)
    await using twin = await from({ deterministic: 'batch-invariant' })
    expect((await bytesOf(twin, 1, device)).length).toBe((await bytesOf(first, 1, device)).length)
  })
})

describe('weights in panels', () => {
  test('an option is checked by name', async () => {
    const layout = 'columns' as 'rows'
    await expect(MoELayer.create({ ...small, device: 'cpu', weightLayout: layout })).rejects.toThrow(/^weightLayout/)
  })

  test('the CPU has none: refused when asked for, rows by default', async () => {
    const before = await liveMemory('cpu')
    const asked = MoELayer.create({ ...small, device: 'cpu', dtype: 'bf16', weightLayout: 'panels' })
    await expect(asked).rejects.toThrow(UnsupportedError)
    await expect(asked).rejects.toThrow(/^weightLayout: expected 'auto' or 'rows' on the CPU/)
    expect(await liveMemory('cpu')).toEqual(before)
    await using layer = await MoELayer.create({ ...small, device: 'cpu', dtype: 'bf16' })
    expect(layer.performanceStats().weightLayout).toBe('rows')
  })
})

onEachDevice('a tensor whose elements lie in panels', (device) => {
  test('is no weight to be given: refused by name, where its twin in rows is taken', async () => {
    const make = (rows: number, columns: number) => Tensor.randn([8, rows, columns], { device, seed: 3 })
    const router = new Float32Array(8 * 128)
    using first = make(128, 128)
    using second = make(128, 64)
    const options: MoELayerOptions = { ...small, device, dtype: 'f32', weights: { router, experts: [first, second] } }
    const taken = await MoELayer.create(options)
    expect(taken.performanceStats().weightLayout).toBe('rows')
    taken.dispose()
    tensorsInPanels.add(second)
    await expect(MoELayer.create(options)).rejects.toThrow(/^weights\.experts\[1\] is in panels/)
  })
})

const shapes: Record<string, MoELayerOptions> = {
  'a gated shared expert': {
    ...small,
    router: routers.qwen2Moe(counts),
    shared: { hiddenDim: 192, gate: true },
  },
  'clamped swiglu with biases': {
    ...small,
    inputDim: 192,
    hiddenDim: 320,
    activation: 'clamped-swiglu',
    bias: true,
    router: routers.gptOss(counts),
  },
  'three layers, f16': { ...small, kind: 'three-layer', hiddenDim: 128, outputDim: 72, dtype: 'f16' },
}
const ways: Record<string, Partial<MoELayerOptions>> = {
  eager: {},
  graphs: { graphs: { captureAfter: 1 } },
  tiered: { strategy: 'tiered' },
  streams: { strategy: 'streams', streams: { count: 3 }, graphs: { captureAfter: 1 } },
  cooperative: { strategy: 'cooperative' },
  'batch-invariant': { deterministic: 'batch-invariant' },
}

describe.skipIf(cudaMissing !== null && process.env.NEXUS_REQUIRE_GPU !== '1')('weights in panels on cuda:0', () => {
  const device: DeviceName = 'cuda:0'
  const layoutOf = (layer: MoELayer) => layer.performanceStats().weightLayout

  describe.each(Object.entries(shapes))('%s', (_, shape) => {
    test.each(Object.entries(ways))('%s: the bytes that rows give', async (_, way) => {
      await using rows = await MoELayer.create({ ...shape, ...way, device, weightLayout: 'rows' })
      await using panels = await MoELayer.create({ ...shape, ...way, device, weightLayout: 'panels' })
      expect([layoutOf(rows), layoutOf(panels)]).toEqual(['rows', 'panels'])
      for (const tokens of [1, 2, 3, 8, 40, 129, 1000, 3000]) {
        const want = await bytesOf(rows, tokens, device)
        expect((await bytesOf(panels, tokens, device)).equals(want), `${tokens} tokens`).toBe(true)
      }
    })

    test('the textbook layer gets rows', async () => {
      await using rows = await MoELayer.create({ ...shape, device, weightLayout: 'rows' })
      await using panels = await MoELayer.create({ ...shape, device, weightLayout: 'panels' })
      await using want = await BaselineMoELayer.create({ weightsFrom: rows })
      await using got = await BaselineMoELayer.create({ weightsFrom: panels })
      expect((await bytesOf(got, 33, device)).equals(await bytesOf(want, 33, device))).toBe(true)
    })
  })

  test('weights that the layer owns are laid where they are; those of the caller stay as they are', async () => {
    const before = await liveMemory(device)
    const make = () => [
      Tensor.randn([8, 128, 128], { dtype: 'bf16', device, seed: 1 }),
      Tensor.randn([8, 128, 64], { dtype: 'bf16', device, seed: 2 }),
    ]
    const router = new Float32Array(8 * 128).fill(0.5)
    const [own, given] = [make(), make()]
    const weightBytes = own.reduce((sum, { byteLength }) => sum + byteLength, 0)
    const options: MoELayerOptions = { ...small, device, dtype: 'bf16' }
    const rows = await MoELayer.create({ ...options, weights: { router, experts: own }, weightLayout: 'rows' })
    const want = await bytesOf(rows, 9, device)
    rows.dispose()
    const start = (await liveMemory(device)).liveBytes
    const adopting = await MoELayer.create({
      ...options,
      weights: { router, experts: own },
      adoptWeights: true,
      weightLayout: 'panels',
    })
    expect((await liveMemory(device)).liveBytes - start).toBeLessThan(weightBytes / 2)
    await expect(MoELayer.create({ ...options, weights: { router, experts: own } })).rejects.toThrow(
      /^weights\.experts\[0\] is in panels/,
    )
    const [first] = given
    if (first === undefined) throw new Error('no weights')
    const untouched = await first.toArray()
    const copying = await MoELayer.create({ ...options, weights: { router, experts: given }, weightLayout: 'panels' })
    expect(await first.toArray()).toEqual(untouched)
    const asGiven = await MoELayer.create({ ...options, weights: { router, experts: given } })
    expect(layoutOf(asGiven)).toBe('rows')
    for (const layer of [adopting, copying, asGiven]) {
      expect((await bytesOf(layer, 9, device)).equals(want)).toBe(true)
      layer.dispose()
    }
    for (const tensor of given) tensor.dispose()
    expect(await liveMemory(device)).toEqual(before)
  })

  test('shapes that cannot lie so are refused by name, and lie in rows by default', async () => {
    const before = await liveMemory(device)
    const odd: MoELayerOptions = { ...small, device, hiddenDim: 72 }
    await expect(MoELayer.create({ ...odd, weightLayout: 'panels' })).rejects.toThrow(/experts 2 has bf16.*72 columns/)
    const f32: MoELayerOptions = { ...small, device, dtype: 'f32', weightLayout: 'panels' }
    await expect(MoELayer.create(f32)).rejects.toThrow(/experts 1 has f32/)
    expect(await liveMemory(device)).toEqual(before)
    await using layer = await MoELayer.create(odd)
    expect(layoutOf(layer)).toBe('rows')
  })
})
