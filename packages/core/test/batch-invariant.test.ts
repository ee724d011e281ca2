/**
 * `deterministic: 'batch-invariant'`: a token's bytes are the same alone and in any batch, for every strategy, by graphs and eager. Checked
 * through the public layer, for batches of 1 to 4096 tokens cut out of one set of tokens: each of their rows against the row of the token
 * alone.
 */
import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { type DeviceName, MoELayer, type MoELayerOptions, routers, Tensor } from '../src/index.js'

const most = 4096
const counts = { numExperts: 8, topK: 2 }
/** Odd sizes, a gated shared expert, sizes that tensor cores like with k over a block of any sum, and float32 router weights or not. */
const shapes: Record<string, MoELayerOptions> = {
  'odd sizes': { inputDim: 19, hiddenDim: 13, outputDim: 11, numExperts: 7, topK: 3, dtype: 'f32' },
  'a gated shared expert': {
    inputDim: 40,
    hiddenDim: 24,
    ...counts,
    router: routers.qwen2Moe(counts),
    shared: { hiddenDim: 17, gate: true },
    dtype: 'f32',
  },
  'bf16, long sums': { inputDim: 1344, hiddenDim: 40, numExperts: 6, topK: 2, dtype: 'bf16' },
}
const strategies: Record<string, Partial<MoELayerOptions>> = {
  fused: {},
  'fused by graphs': { graphs: { captureAfter: 1 } },
  tiered: { strategy: 'tiered', graphs: { captureAfter: 1 } },
  streams: { strategy: 'streams', streams: { count: 3 } },
  cooperative: { strategy: 'cooperative', graphs: { captureAfter: 2 } },
}
/** Every number to 64, then primes, buckets and what lies beside them, and the most. */
const sizes = [
  ...Array.from({ length: 64 }, (_, i) => i + 1),
  ...[65, 67, 96, 97, 127, 128, 129, 131, 192, 193, 251, 256, 257, 509, 512, 521, 1021, 1024, 1025, 2039, 3072, 4093],
  most,
]

const bytesOf = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** A layer, its tokens on the host, and the bytes that each token's row has when it is alone. */
class Case {
  readonly layer: MoELayer
  readonly #x: Float32Array
  readonly #alone = new Map<number, Uint8Array>()

  private constructor(layer: MoELayer, x: Float32Array) {
    this.layer = layer
    this.#x = x
  }

  static async create(options: MoELayerOptions): Promise<Case> {
    const layer = await MoELayer.create(options)
    using x = Tensor.randn([most, options.inputDim], { device: 'cpu', seed: 5 })
    return new Case(layer, await x.toFloat32Array())
  }

  async run(first: number, count: number): Promise<Uint8Array> {
    const { inputDim } = this.layer.config.experts
    const { output } = await this.layer.forward(this.#x.subarray(first * inputDim, (first + count) * inputDim))
    using _ = output
    return bytesOf(await output.toArray())
  }

  async alone(token: number): Promise<Uint8Array> {
    let row = this.#alone.get(token)
    if (row === undefined) {
      row = await this.run(token, 1)
      this.#alone.set(token, row)
    }
    return row
  }

  /** The first of these tokens whose row in the batch is not its row alone, or `null`. */
  async firstOther(first: number, count: number, tokens: Iterable<number>): Promise<number | null> {
    const batch = await this.run(first, count)
    const width = batch.length / count
    for (const i of tokens) {
      const row = await this.alone(first + i)
      if (Buffer.compare(row, batch.subarray(i * width, (i + 1) * width)) !== 0) return i
    }
    return null
  }

  dispose(): void {
    this.layer.dispose()
  }
}

/** All rows of small batches; of large ones the ends and some between, other ones for each size. */
function* sample(count: number): Generator<number> {
  if (count <= 64) {
    for (let i = 0; i < count; i++) yield i
    return
  }
  for (const i of [0, 1, count - 2, count - 1]) yield i
  for (let i = 0; i < 24; i++) yield (i * 2654435761 + count) % count
}

async function withCase(
  device: DeviceName,
  options: MoELayerOptions,
  body: (one: Case) => Promise<void>,
): Promise<void> {
  const one = await Case.create({ ...options, device, seed: 3 })
  try {
    await body(one)
  } finally {
    one.dispose()
  }
}

onEachDevice('batch-invariant', (device) => {
  for (const [shape, options] of Object.entries(shapes)) {
    for (const [strategy, how] of Object.entries(strategies)) {
      test(`${shape}, ${strategy}: rows alone and in batches of 1 to ${most}`, { timeout: 300_000 }, async () => {
        await withCase(device, { ...options, ...how, deterministic: 'batch-invariant' }, async (one) => {
          for (const count of sizes) {
            const first = (count * 37) % (most - count + 1)
            expect(await one.firstOther(first, count, sample(count)), `of ${count} tokens from ${first}`).toBeNull()
          }
        })
      })
    }
  }

  test('any batch of any tokens', { timeout: 300_000 }, async () => {
    await withCase(
      device,
      { ...(shapes['bf16, long sums'] as MoELayerOptions), deterministic: 'batch-invariant' },
      async (one) => {
        const batch = fc.tuple(
          fc.integer({ min: 1, max: 700 }),
          fc.nat(most - 700),
          fc.array(fc.nat(699), { minLength: 1, maxLength: 8 }),
        )
        const property = fc.asyncProperty(batch, async ([count, first, rows]) => {
          expect(
            await one.firstOther(
              first,
              count,
              rows.map((row) => row % count),
            ),
          ).toBeNull()
        })
        await fc.assert(property, { numRuns: 60 })
      },
    )
  })

  test('all strategies have the same bytes', async () => {
    const options = {
      ...(shapes['a gated shared expert'] as MoELayerOptions),
      deterministic: 'batch-invariant' as const,
    }
    let expected: Uint8Array | null = null
    for (const how of Object.values(strategies)) {
      await withCase(device, { ...options, ...how }, async (one) => {
        const got = await one.run(100, 77)
        expected ??= got
        expect(Buffer.compare(got, expected)).toBe(0)
      })
    }
  })

  test('a wrong value is refused by name, the configuration says which it is', async () => {
    const options = { inputDim: 8, hiddenDim: 8, numExperts: 2, topK: 1, device }
    await expect(MoELayer.create({ ...options, deterministic: 'always' as never })).rejects.toThrow(
      /deterministic: expected one of 'run-to-run', 'batch-invariant', got 'always'/,
    )
    using layer = await MoELayer.create(options)
    expect(layer.config.deterministic).toBe('run-to-run')
  })
})
