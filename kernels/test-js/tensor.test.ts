import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { binding } from '../lib/binding-entry.js'
import {
  DeviceError,
  type DeviceName,
  DisposedError,
  isTensor,
  memoryStats,
  Stream,
  Tensor,
  UnsupportedError,
} from '../lib/index.js'
import { fromBf16, fromF16, toBf16, toF16 } from './conversions.js'
import { devices } from './devices.js'
import { anyFloats } from './random.js'

const bits32 = (array: Float32Array): Uint32Array => new Uint32Array(array.buffer, array.byteOffset, array.length)
const normal = (array: Float32Array): number[] => Array.from(array, (v) => (Number.isNaN(v) ? NaN : v))

describe.each(devices)('Tensor on $title', ({ name, skip }: { name: DeviceName; skip: string | null }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    const device = name

    it('keeps a snapshot of its data, bit for bit', async () => {
      const data = anyFloats(1003, 1)
      const expected = bits32(data).slice()
      using tensor = Tensor.from(data, [17, 59], { device })
      data.fill(0)
      expect(tensor).toMatchObject({
        shape: [17, 59],
        dtype: 'f32',
        device,
        size: 1003,
        byteLength: 4012,
        disposed: false,
      })
      expect(bits32(await tensor.toFloat32Array())).toEqual(expected)
    })

    it.each([
      ['bf16', toBf16, fromBf16],
      ['f16', toF16, fromF16],
    ] as const)('rounds float32 to %s to nearest even, and back exactly', async (dtype, to, from) => {
      const data = anyFloats(4099, 7)
      using tensor = Tensor.from(data, [4099], { device, dtype })
      const bits = await tensor.toArray()
      expect(bits).toBeInstanceOf(Uint16Array)
      const numbers = Array.from(data, (v, i) => (Number.isNaN(v) ? from(bits[i] ?? 0) : from(to(v))))
      expect(normal(await tensor.toFloat32Array())).toEqual(numbers)
      for (const [i, value] of data.entries()) if (!Number.isNaN(value)) expect(bits[i], `of ${value}`).toBe(to(value))
    })

    it.each(['bf16', 'f16'] as const)('keeps all 65536 raw bit patterns of %s', async (dtype) => {
      const raw = Uint16Array.from({ length: 65536 }, (_, i) => i)
      using tensor = Tensor.from(raw, [256, 256], { device, dtype })
      expect(await tensor.toArray()).toEqual(raw)
      const from = dtype === 'bf16' ? fromBf16 : fromF16
      expect(normal(await tensor.toFloat32Array())).toEqual(Array.from(raw, from))
    })

    it('holds 32-bit integers', async () => {
      const data = Int32Array.of(0, -1, 2 ** 31 - 1, -(2 ** 31), 16777217)
      using tensor = Tensor.from(data, [5], { device })
      expect(tensor.dtype).toBe('i32')
      expect(await tensor.toArray()).toEqual(data)
      expect(await tensor.toFloat32Array()).toEqual(Float32Array.from(data))
      using numbers = Tensor.from([1, -2, 3], [3], { device, dtype: 'i32' })
      expect(await numbers.toArray()).toEqual(Int32Array.of(1, -2, 3))
    })

    it('takes plain numbers', async () => {
      using tensor = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3], { device })
      expect(Array.from(await tensor.toFloat32Array())).toEqual([1, 2, 3, 4, 5, 6])
      using scalar = Tensor.from([7], [], { device })
      expect(scalar.size).toBe(1)
    })

    it('may be empty', async () => {
      for (const shape of [[0], [0, 5], [3, 0, 2]]) {
        using tensor = Tensor.zeros(shape, { device, dtype: 'bf16' })
        expect(tensor.size).toBe(0)
        expect(await tensor.toArray()).toEqual(new Uint16Array(0))
        await tensor.write(new Uint16Array(0))
        using copy = await tensor.to({ dtype: 'f32' })
        expect(await copy.toFloat32Array()).toEqual(new Float32Array(0))
      }
      using normal = Tensor.randn([0], { device })
      expect(await normal.toArray()).toEqual(new Float32Array(0))
    })

    it('is zero where asked', async () => {
      using tensor = Tensor.zeros([1001], { device })
      expect(await tensor.toFloat32Array()).toEqual(new Float32Array(1001))
    })

    it('has normal deviates that depend on seed and scale alone', async () => {
      const n = 40_001
      using a = Tensor.randn([n], { device, seed: 3 })
      using again = Tensor.randn([n], { device, seed: 3, stream: Stream.default(device) })
      using other = Tensor.randn([n], { device, seed: 4 })
      using half = Tensor.randn([n], { device, seed: 3, scale: 0.5 })
      const [x, y, z, h] = await Promise.all([a, again, other, half].map((t) => t.toFloat32Array()))
      if (!x || !y || !z || !h) throw new Error('four arrays were expected')
      expect(bits32(y)).toEqual(bits32(x))
      expect(bits32(z)).not.toEqual(bits32(x))
      // (scale is applied before the one rounding; a power of two is exact)
      expect(h).toEqual(x.map((v) => v / 2))
      const mean = x.reduce((s, v) => s + v, 0) / n
      const deviation = Math.sqrt(x.reduce((s, v) => s + (v - mean) ** 2, 0) / n)
      expect(Math.abs(mean)).toBeLessThan(4 / Math.sqrt(n))
      expect(Math.abs(deviation - 1)).toBeLessThan(4 / Math.sqrt(2 * n))
    })

    it('converts into another dtype as its data would have been', async () => {
      const data = anyFloats(2003, 11).map((v) => (Number.isNaN(v) ? 1 : v))
      using tensor = Tensor.from(data, [2003], { device })
      for (const dtype of ['bf16', 'f16', 'f32'] as const) {
        using direct = Tensor.from(data, [2003], { device, dtype })
        using converted = await tensor.to({ dtype })
        expect(converted).toMatchObject({ dtype, device, shape: [2003] })
        expect(await converted.toArray()).toEqual(await direct.toArray())
      }
      using integers = Tensor.from(Int32Array.of(5, -6), [2], { device })
      using floats = await integers.to({ dtype: 'bf16' })
      expect(Array.from(await floats.toFloat32Array())).toEqual([5, -6])
      await expect(tensor.to({ dtype: 'i32' })).rejects.toThrow(UnsupportedError)
    })

    it('copies to the CPU and back', async () => {
      using tensor = Tensor.randn([37, 5], { device, dtype: 'bf16', seed: 9 })
      using host = await tensor.to({ device: 'cpu' })
      using back = await host.to({ device })
      expect(host.device).toBe('cpu')
      expect(await back.toArray()).toEqual(await tensor.toArray())
    })

    it('is written in parts', async () => {
      using tensor = Tensor.zeros([10], { device, dtype: 'bf16' })
      await tensor.write(Float32Array.of(1, 2, 3), { offset: 2 })
      await tensor.write(Uint16Array.of(toBf16(9)), { offset: 9 })
      await tensor.write(Uint16Array.of(toF16(0.5)), { offset: 8, dtype: 'f16' })
      expect(Array.from(await tensor.toFloat32Array())).toEqual([0, 0, 1, 2, 3, 0, 0, 0, 0.5, 9])
    })

    it('is written chunk by chunk when large', async () => {
      const n = 7_000_003
      const data = new Float32Array(n)
      for (let i = 0; i < n; i++) data[i] = i % 8191
      using tensor = Tensor.empty([n], { device })
      await tensor.write(data)
      expect(Buffer.compare(Buffer.from((await tensor.toFloat32Array()).buffer), Buffer.from(data.buffer))).toBe(0)
      using narrow = Tensor.empty([n], { device, dtype: 'f16' })
      await narrow.write(data)
      const read = await narrow.toFloat32Array()
      let wrong = 0
      for (let i = 0; i < n; i += 101) if (read[i] !== fromF16(toF16(i % 8191))) wrong++
      expect(wrong).toBe(0)
    })

    it('can be used with another stream than the one it was made on', async () => {
      const stream = Stream.create({ device })
      const tensor = Tensor.from([1, 2], [2], { stream })
      stream.dispose()
      expect(stream.disposed).toBe(true)
      expect(Array.from(await tensor.toFloat32Array())).toEqual([1, 2])
      expect(() => Tensor.zeros([1], { stream })).toThrow(DisposedError)
      tensor.dispose()
    })

    it('throws DisposedError after dispose; disposing twice is fine', async () => {
      const tensor = Tensor.zeros([4], { device })
      const pending = tensor.toFloat32Array()
      tensor.dispose()
      tensor.dispose()
      expect(tensor.disposed).toBe(true)
      expect(await pending).toEqual(new Float32Array(4))
      await expect(tensor.toFloat32Array()).rejects.toThrow(DisposedError)
      await expect(tensor.toArray()).rejects.toMatchObject({ code: 'ERR_NEXUS_DISPOSED' })
      await expect(tensor.to({ dtype: 'bf16' })).rejects.toThrow(DisposedError)
      await expect(tensor.write([1])).rejects.toThrow(DisposedError)
    })

    it('gives all memory back', async () => {
      await Stream.default(device).synchronize()
      const before = memoryStats(device)
      for (let i = 0; i < 200; i++) {
        using tensor = Tensor.randn([1000 + i], { device, seed: i })
        using copy = await tensor.to({ dtype: i % 2 ? 'bf16' : 'f16' })
        await copy.toFloat32Array()
      }
      await Stream.default(device).synchronize()
      const after = memoryStats(device)
      expect(after.liveBuffers).toBe(before.liveBuffers)
      expect(after.liveBytes).toBe(before.liveBytes)
      expect(after.peakBytes).toBeGreaterThan(before.liveBytes)
    })

    it.each([
      ['from', 'upload', () => Tensor.from([1, 2, 3], [3], { device })],
      ['zeros', 'bufferFill', () => Tensor.zeros([1000], { device })],
      ['randn', 'fillNormal', () => Tensor.randn([1000], { device })],
    ] as const)('%s gives its memory back at once when %s fails', async (_name, filling, make) => {
      await Stream.default(device).synchronize()
      const { liveBuffers, liveBytes } = memoryStats(device)
      const failing = vi.spyOn(binding().native, filling).mockImplementation(() => {
        expect(memoryStats(device).liveBuffers).toBe(liveBuffers + 1) // what is to be filled is there
        throw Object.assign(new Error('filling failed'), { code: 'ERR_NEXUS_DEVICE' })
      })
      try {
        expect(make).toThrow(DeviceError)
        expect(failing).toHaveBeenCalledOnce()
      } finally {
        failing.mockRestore()
      }
      await Stream.default(device).synchronize()
      expect(memoryStats(device)).toMatchObject({ liveBuffers, liveBytes })
      make().dispose()
    })

    it('leaves the event loop free during a large copy', async () => {
      const n = 24_000_000
      const data = new Float32Array(n).fill(0.1)
      using tensor = Tensor.empty([n], { device, dtype: 'f16' })
      // A loop that is held up is so on every attempt; one that other processes kept from running is not.
      let [longest, ticks, writing] = [0, 0, 0]
      for (let attempt = 0; attempt < 5 && (ticks === 0 || longest >= Math.max(writing / 2, 50)); attempt++) {
        longest = ticks = 0
        let last = performance.now()
        const timer = setInterval(() => {
          const now = performance.now()
          longest = Math.max(longest, now - last)
          last = now
          ticks++
        }, 1)
        const start = performance.now()
        await tensor.write(data)
        writing = performance.now() - start
        clearInterval(timer)
      }
      // Were the conversion done on the JavaScript thread, there would be no tick at all in between.
      expect(ticks).toBeGreaterThan(0)
      expect(longest).toBeLessThan(Math.max(writing / 2, 50))
    })
  })
})

describe('arguments', () => {
  const device = 'cpu'
  it.each([
    ['data of a wrong kind', () => Tensor.from('abc' as never, [3]), TypeError, /^data: .*got 'abc'/],
    [
      'a Uint16Array without dtype',
      () => Tensor.from(new Uint16Array(2), [2]),
      TypeError,
      /^dtype: a Uint16Array needs 'bf16' or 'f16'/,
    ],
    [
      'memory that other threads share',
      () => Tensor.from(new Float32Array(new SharedArrayBuffer(8)), [2]),
      TypeError,
      /^data: .*got an instance of SharedArrayBuffer/,
    ],
    [
      'an infinite extent times nothing',
      () => Tensor.zeros([1e308, 1e308, 0]),
      RangeError,
      /^shape: expected integers/,
    ],
    [
      'floats as i32',
      () => Tensor.from(new Float32Array(1), [1], { dtype: 'i32' }),
      TypeError,
      /^dtype: a Float32Array/,
    ],
    [
      'integers as f32',
      () => Tensor.from(new Int32Array(1), [1], { dtype: 'f32' }),
      TypeError,
      /^dtype: an? Int32Array needs 'i32'/,
    ],
    [
      'another length',
      () => Tensor.from([1, 2], [3], { device }),
      RangeError,
      /^data: expected 3 elements for shape \[3\], got 2/,
    ],
    ['half an integer', () => Tensor.from([1.5], [1], { dtype: 'i32' }), RangeError, /^data: .*1\.5/],
    ['a negative extent', () => Tensor.zeros([2, -1]), RangeError, /^shape: .*\[2, -1\]/],
    ['no shape', () => Tensor.zeros(5 as never), TypeError, /^shape: expected an array/],
    ['a huge shape', () => Tensor.zeros([2 ** 30, 2 ** 30]), RangeError, /^shape: .*too large/],
    [
      'an unknown option',
      () => Tensor.zeros([1], { devise: 'cpu' } as never),
      TypeError,
      /'devise'; did you mean 'device'\?/,
    ],
    ['an unknown dtype', () => Tensor.zeros([1], { dtype: 'f64' as never }), RangeError, /^dtype: .*'f64'/],
    ['a device that is none', () => Tensor.zeros([1], { device: 'gpu' as never }), TypeError, /^device: .*'gpu'/],
    ['a seed below 0', () => Tensor.randn([1], { seed: -1 }), RangeError, /^seed: .*-1/],
    ['random integers', () => Tensor.randn([1], { dtype: 'i32' }), RangeError, /^dtype: /],
    [
      'a stream that is none',
      () => Tensor.zeros([1], { stream: {} as never }),
      TypeError,
      /^stream: expected a Stream/,
    ],
  ])('%s is refused by name', (_title, run, type, message) => {
    expect(run).toThrow(type)
    expect(run).toThrow(message)
  })

  it('a write that does not fit is refused by name', async () => {
    using tensor = Tensor.zeros([4], { device })
    await expect(tensor.write([1, 2], { offset: 3 })).rejects.toThrow(/^data: 2 elements at offset 3 do not fit into 4/)
    await expect(tensor.write(new Int32Array(1))).rejects.toThrow(TypeError)
    await expect(tensor.to({ type: 'f32' } as never)).rejects.toThrow(/unknown option 'type'/)
  })

  it('memory that could shrink while it is read is refused by name', async () => {
    using tensor = Tensor.zeros([4], { device })
    const buffer: ArrayBuffer = Reflect.construct(ArrayBuffer, [16, { maxByteLength: 64 }])
    await expect(tensor.write(new Float32Array(buffer))).rejects.toThrow(/^data: .*resizable/)
  })

  it('tensors are told from other values by their brand', () => {
    using tensor = Tensor.zeros([1], { device })
    expect(isTensor(tensor)).toBe(true)
    expect(isTensor({ [Symbol.for('nexus.Tensor')]: true })).toBe(true)
    for (const value of [null, undefined, 1, 'x', {}, [], new Float32Array(1)]) expect(isTensor(value)).toBe(false)
  })
})

describe('a very large tensor', () => {
  let before = 0
  beforeAll(() => {
    before = memoryStats('cpu').liveBuffers
  })
  afterAll(() => expect(memoryStats('cpu').liveBuffers).toBe(before))

  it('that no machine can hold is an OutOfMemoryError with the bytes asked for', () => {
    const shape = [2 ** 20, 2 ** 28]
    expect(() => Tensor.empty(shape, { device: 'cpu' })).toThrow(
      expect.objectContaining({ code: 'ERR_NEXUS_OUT_OF_MEMORY', requested: 2 ** 50 }),
    )
  })
})
