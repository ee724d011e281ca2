// Recorded work: nothing runs while it is recorded, launches run it in order and see what was written before; what cannot be recorded is
// refused, and leaves the stream as it was.
import { describe, expect, it } from 'vitest'
import { binding, bufferOf, orderBehind, setTensorStream, streamOf } from '../lib/binding-entry.js'
import { DisposedError, Event, Graph, GraphCaptureError, memoryStats, Stream, Tensor } from '../lib/index.js'
import { devices } from './devices.js'

/** Copies one tensor into another as packages do it: ordered behind who wrote the source, the target noted as written. */
function copy(stream: Stream, from: Tensor, to: Tensor): void {
  orderBehind(stream, from, to)
  binding().native.copy(streamOf(stream), bufferOf(to), 0, bufferOf(from), 0, from.byteLength)
  setTensorStream(to, stream)
}
const values = async (tensor: Tensor): Promise<number[]> => [...(await tensor.toFloat32Array())]

describe.each(devices)('graphs on $title', ({ name: device, skip }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    it('a width is that of the device where a stream has no slice', () => {
      using stream = Stream.create({ device })
      expect(stream.width).toBe(binding().slices.partitionInfo(device === 'cpu' ? -1 : 0).units)
      stream.dispose()
      expect(() => stream.width).toThrow(DisposedError)
    })

    it('records without running, and runs at each launch with what its inputs hold then', async () => {
      using stream = Stream.create({ device })
      using x = Tensor.from([1, 2, 3], [3], { stream })
      using y = Tensor.zeros([3], { stream })
      using z = Tensor.zeros([3], { stream })
      using graph = Graph.capture(stream, () => {
        copy(stream, x, y)
        copy(stream, y, z)
      })
      expect(graph).toMatchObject({ nodes: 2, device, disposed: false })
      expect(graph.bytes).toBeGreaterThanOrEqual(0)
      expect(typeof graph.bytesEstimated).toBe('boolean')
      expect(graph.captureMs).toBeGreaterThan(0)
      expect(await values(z)).toEqual([0, 0, 0])
      graph.launch()
      expect(await values(z)).toEqual([1, 2, 3])
      await x.write([4, 5, 6])
      graph.launch()
      expect(await values(z)).toEqual([4, 5, 6])
    })

    it('a launch on another stream comes behind what fills its inputs, and reading its outputs behind the launch', async () => {
      using streams = trio(device)
      const [writer, recorder, runner] = streams
      using x = Tensor.zeros([500_000], { stream: writer })
      using y = Tensor.zeros([500_000], { stream: writer })
      await writer.synchronize()
      using graph = Graph.capture(recorder, () => copy(recorder, x, y))
      for (let i = 1; i <= 5; i++) {
        binding().native.fillNormal(streamOf(writer), bufferOf(x), 0, x.size, i, 1)
        graph.launch(runner)
        const [a, b] = await Promise.all([x.toFloat32Array(), y.toFloat32Array()])
        expect(Buffer.compare(Buffer.from(a.buffer), Buffer.from(b.buffer))).toBe(0)
      }
    })

    it('forks to other streams by events and joins them again', async () => {
      using streams = trio(device)
      const [main, left, right] = streams
      using x = Tensor.from([7], [1], { stream: main })
      using a = Tensor.zeros([1], { stream: main })
      using b = Tensor.zeros([1], { stream: main })
      using sum = Tensor.zeros([1], { stream: main })
      using forked = Event.create(device)
      using joined = Event.create(device)
      using other = Event.create(device)
      using graph = Graph.capture(main, () => {
        forked.record(main)
        left.wait(forked)
        right.wait(forked)
        copy(left, x, a)
        copy(right, x, b)
        joined.record(left)
        other.record(right)
        main.wait(joined)
        main.wait(other)
        copy(main, b, sum)
      })
      graph.launch()
      expect([await values(a), await values(b), await values(sum)]).toEqual([[7], [7], [7]])
    })

    it('a stream that was forked and not joined is refused', () => {
      using streams = trio(device)
      const [main, left] = streams
      using x = Tensor.zeros([1], { stream: main })
      using y = Tensor.zeros([1], { stream: main })
      using forked = Event.create(device)
      expect(() =>
        Graph.capture(main, () => {
          forked.record(main)
          left.wait(forked)
          copy(left, x, y)
        }),
      ).toThrow(GraphCaptureError)
      expect(() => Graph.capture(main, () => copy(main, x, y)).dispose()).not.toThrow()
    })

    it('a body that throws undoes the capture: the error is the cause, the stream works as before', async () => {
      using stream = Stream.create({ device })
      using x = Tensor.from([1], [1], { stream })
      using y = Tensor.zeros([1], { stream })
      const cause = new Error('no')
      const failing = () =>
        Graph.capture(stream, () => {
          copy(stream, x, y)
          throw cause
        })
      expect(failing).toThrow(GraphCaptureError)
      expect(failing).toThrow(
        expect.objectContaining({ code: 'ERR_NEXUS_GRAPH_CAPTURE', cause, message: expect.stringMatching(/no$/) }),
      )
      expect(await values(y)).toEqual([0])
      copy(stream, x, y)
      expect(await values(y)).toEqual([1])
    })

    it('an async body is refused, whether its promise resolves or rejects', async () => {
      using stream = Stream.create({ device })
      expect(() => Graph.capture(stream, async () => {})).toThrow(
        expect.objectContaining({ name: 'GraphCaptureError', message: expect.stringMatching(/^body: .*a promise$/) }),
      )
      expect(() => Graph.capture(stream, async () => Promise.reject(new Error('later')))).toThrow(GraphCaptureError)
      await stream.synchronize()
    })

    it.each<[string, RegExp, (stream: Stream, x: Tensor) => unknown]>([
      ['allocating', /make tensors before, and pass them as `out`$/, (stream) => Tensor.empty([4], { stream })],
      ['a filled tensor', /make tensors before/, (stream) => Tensor.zeros([4], { stream })],
      ['another capture', /capture|recorded/, (stream) => Graph.capture(stream, () => {})],
    ])('%s cannot be recorded', (_, message, work) => {
      using stream = Stream.create({ device })
      using x = Tensor.zeros([1], { stream })
      let seen: unknown
      const capture = () =>
        Graph.capture(stream, () => {
          try {
            work(stream, x)
          } catch (error) {
            seen = error
            throw error
          }
        })
      expect(capture).toThrow(GraphCaptureError)
      expect(seen).toBeInstanceOf(GraphCaptureError)
      expect(seen).toMatchObject({ message: expect.stringMatching(message) })
    })

    it('waiting, reading back and writing from the host reject while the stream is recorded', async () => {
      using stream = Stream.create({ device })
      using x = Tensor.zeros([1], { stream })
      const refused: Promise<unknown>[] = []
      const work = () => {
        refused.push(stream.synchronize(), x.toFloat32Array(), x.write([1]))
        for (const promise of refused) promise.catch(() => {})
      }
      try {
        Graph.capture(stream, work).dispose()
      } catch (error) {
        expect(error).toBeInstanceOf(GraphCaptureError)
      }
      expect(refused).toHaveLength(3)
      for (const promise of refused) await expect(promise).rejects.toThrow(GraphCaptureError)
      expect(await values(x)).toEqual([0])
    })

    it('a graph keeps the memory that it uses, and gives it back', async () => {
      using stream = Stream.create({ device })
      const before = memoryStats(device).liveBytes
      const x = Tensor.from([3], [1], { stream })
      const between = Tensor.zeros([1], { stream })
      using y = Tensor.zeros([1], { stream })
      const graph = Graph.capture(stream, () => {
        copy(stream, x, between)
        copy(stream, between, y)
      })
      x.dispose()
      between.dispose()
      using other = Tensor.from([8], [1], { stream })
      using another = Tensor.from([9], [1], { stream })
      graph.launch()
      expect([await values(y), await values(other), await values(another)]).toEqual([[3], [8], [9]])
      graph.dispose()
      for (const tensor of [y, other, another]) tensor.dispose()
      await stream.synchronize()
      expect(memoryStats(device).liveBytes).toBe(before)
    })

    it('use after dispose, and what is no stream, body or graph', () => {
      using stream = Stream.create({ device })
      using x = Tensor.zeros([1], { stream })
      using y = Tensor.zeros([1], { stream })
      const graph = Graph.capture(stream, () => copy(stream, x, y))
      graph.launch()
      graph.dispose()
      graph.dispose()
      expect(graph.disposed).toBe(true)
      expect(graph.nodes).toBe(1)
      expect(() => graph.launch()).toThrow(DisposedError)
      expect(() => Graph.capture({} as never, () => {})).toThrow(/^stream: expected a Stream, got an object$/)
      expect(() => Graph.capture(stream, 1 as never)).toThrow(/^body: expected a function, got 1$/)
    })

    it('a stream that is disposed of while it is recorded ends the capture', () => {
      const stream = Stream.create({ device })
      expect(() => Graph.capture(stream, () => stream.dispose())).not.toThrow(TypeError)
      using again = Stream.create({ device })
      Graph.capture(again, () => {}).dispose()
    })
  })
})

function trio(device: 'cpu' | `cuda:${number}`): [Stream, Stream, Stream] & Disposable {
  const streams = [0, 1, 2].map(() => Stream.create({ device })) as [Stream, Stream, Stream]
  return Object.assign(streams, {
    [Symbol.dispose]: () => {
      for (const stream of streams) stream.dispose()
    },
  })
}
