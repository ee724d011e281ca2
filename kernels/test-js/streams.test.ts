import { describe, expect, it } from 'vitest'
import { binding, bufferOf, orderBehind, setTensorStream, streamOf } from '../lib/binding-entry.js'
import { DisposedError, Event, resolveDevice, Stream, systemInfo, Tensor, UnsupportedError } from '../lib/index.js'
import { devices } from './devices.js'

describe.each(devices)('streams on $title', ({ name: device, skip }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    it('there is one default stream, which dispose() leaves', async () => {
      const stream = Stream.default(device)
      expect(Stream.default(device)).toBe(stream)
      stream.dispose()
      expect(stream.disposed).toBe(false)
      await stream.synchronize()
    })

    it('events order one stream behind another, and measure time', async () => {
      using first = Stream.create({ device })
      using second = Stream.create({ device, priority: -1 })
      using start = Event.create(device)
      using end = Event.create(device)
      start.record(first)
      using tensor = Tensor.randn([300_000], { stream: first, seed: 1 })
      end.record(first)
      second.wait(end)
      await second.synchronize()
      expect(start.ready && end.ready).toBe(true)
      expect(start.elapsedMs(end)).toBeGreaterThan(0)
      expect(tensor.device).toBe(device)
    })

    it('orderBehind() puts a stream behind the work that fills a tensor; setTensorStream() says who wrote it', async () => {
      using writer = Stream.create({ device })
      using reader = Stream.create({ device })
      for (let i = 0; i < 10; i++) {
        using source = Tensor.randn([1_000_000], { stream: writer, seed: i })
        using target = Tensor.zeros([1_000_000], { stream: writer })
        orderBehind(reader, source, target)
        binding().native.copy(streamOf(reader), bufferOf(target), 0, bufferOf(source), 0, source.byteLength)
        setTensorStream(target, reader)
        const [a, b] = await Promise.all([source.toArray(), target.toArray()])
        expect(Buffer.compare(Buffer.from(a.buffer), Buffer.from(b.buffer))).toBe(0)
      }
    })

    it('a limit of the bytes under way is taken as it is, or refused by name', async () => {
      using stream = Stream.create({ device, readAheadBytes: 1 })
      using tensor = Tensor.randn([100], { stream, seed: 1 })
      using expected = Tensor.randn([100], { device, seed: 1 })
      expect(await tensor.toFloat32Array()).toEqual(await expected.toFloat32Array())
      for (const readAheadBytes of [0, -1, 0.5, Number.NaN, 2 ** 60]) {
        expect(() => Stream.create({ device, readAheadBytes })).toThrow(/readAheadBytes: expected an integer/)
      }
      expect(() => Stream.create({ device, readAheadBytes: '1' as never })).toThrow(TypeError)
    })

    it('an event that was not recorded has no time', () => {
      using a = Event.create(device)
      using b = Event.create(device)
      expect(() => a.elapsedMs(b)).toThrow(
        expect.objectContaining({ code: 'ERR_NEXUS_INVALID_ARGUMENT', name: 'RangeError' }),
      )
    })

    it('use after dispose throws', async () => {
      const stream = Stream.create({ device })
      const event = Event.create(device)
      stream.dispose()
      stream.dispose()
      event.dispose()
      event.dispose()
      await expect(stream.synchronize()).rejects.toThrow(DisposedError)
      expect(() => event.ready).toThrow(DisposedError)
      expect(() => event.record(Stream.default(device))).toThrow(DisposedError)
      expect(() => Stream.default(device).wait({} as never)).toThrow(/^event: expected an Event, got an object/)
    })
  })
})

describe('resolveDevice', () => {
  const devicesHere = systemInfo().machine?.cuda.devices.length ?? 0

  it("'auto' is CUDA where there is a device, else the CPU", () => {
    expect(resolveDevice('auto')).toBe(devicesHere > 0 ? 'cuda:0' : 'cpu')
    expect(resolveDevice('cpu')).toBe('cpu')
  })

  it('a CUDA device that is not there is an UnsupportedError with the reason', () => {
    expect(() => resolveDevice('cuda:999')).toThrow(UnsupportedError)
    expect(() => resolveDevice('cuda:999')).toThrow(/^device: 'cuda:999' cannot be used: ./)
    if (devicesHere === 0) expect(() => resolveDevice('cuda')).toThrow(UnsupportedError)
  })

  it.each(['', 'CPU', 'cuda:', 'cuda:-1', 'cuda:01', 'cuda:1.5', 'gpu', null, 0, {}])('%j is no device', (spec) => {
    expect(() => resolveDevice(spec as never)).toThrow(TypeError)
  })
})
