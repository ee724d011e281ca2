// Tables of lanes: checked before they reach the device, updated in stream order, and their trace read back. (What launches do with
// them is tested where the launches are.)
import { describe, expect, it } from 'vitest'
import { laneSetOf } from '../lib/binding-entry.js'
import { DisposedError, Graph, GraphCaptureError, LaneSet, memoryStats, Stream } from '../lib/index.js'
import { devices } from './devices.js'

describe.each(devices)('lane sets on $title', ({ name: device, skip }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    const made = (options: object = {}) =>
      new LaneSet({ stream: Stream.default(device), laneOf: [0, 1, 1, 0], lanes: 2, ...options } as never)

    it('says what it is', () => {
      using lanes = made({ trace: true, shares: [3, 1] })
      expect(lanes).toMatchObject({ device, lanes: 2, numExperts: 4, traced: true, disposed: false })
      using plain = made({ laneOf: Int32Array.of(1, 0) })
      expect(plain).toMatchObject({ numExperts: 2, traced: false })
    })

    it.each<[string, object, RegExp]>([
      ['no lane', { lanes: 0 }, /^lanes: expected an integer from 1 to 64, got 0$/],
      ['too many lanes', { lanes: 65 }, /^lanes: expected an integer from 1 to 64, got 65$/],
      ['no expert', { laneOf: [] }, /^laneOf\.length: expected an integer from 1 to 1024, got 0$/],
      ['too many experts', { laneOf: new Int32Array(1025) }, /^laneOf\.length: expected an integer from 1 to 1024/],
      ['a lane that is not there', { laneOf: [0, 2] }, /^laneOf\[1\]: expected an integer from 0 to 1, got 2$/],
      ['half a lane', { laneOf: [0.5] }, /^laneOf\[0\]: expected an integer from 0 to 1, got 0.5$/],
      ['no array', { laneOf: '01' }, /^laneOf: expected an array of integers, got '01'$/],
      ['a share of nothing', { shares: [1, 0] }, /^shares\[1\]: expected an integer from 1 to/],
      ['a share too many', { shares: [1, 1, 1] }, /^shares: expected 2 numbers, got 3$/],
      ['no boolean', { trace: 1 }, /^trace: expected a boolean, got 1$/],
      ['no stream', { stream: null }, /^stream: expected a Stream, got null$/],
      ['an unknown option', { lane: 1 }, /^LaneSet options: unknown option 'lane'; did you mean 'lanes'\?$/],
    ])('refuses %s by name', (_, options, message) => {
      expect(() => made(options)).toThrow(message)
    })

    it('updates are checked alike, and nothing is changed by a wrong one', async () => {
      using lanes = made({ trace: true })
      expect(() => lanes.update({ laneOf: [0, 0] })).toThrow(/^laneOf: expected 4 numbers, got 2$/)
      expect(() => lanes.update({ laneOf: [0, 0, 0, 2] })).toThrow(/^laneOf\[3\]: /)
      expect(() => lanes.update({ laneOf: [0, 0, 0, 0], shares: [0, 1] })).toThrow(/^shares\[0\]: /)
      expect(() => lanes.update({ lane: [] } as never)).toThrow(/unknown option/)
      using other = Stream.create({ device })
      for (let i = 0; i < 100; i++) {
        lanes.update({ laneOf: [i & 1, 0, 1, 1], shares: [1, 1 + i], ...(i % 3 === 0 ? { stream: other } : {}) })
      }
      // No launch has used it: no unit has worked for any lane.
      expect(await lanes.trace()).toEqual([[], []])
      expect(await lanes.trace(other)).toEqual([[], []])
    })

    it('a trace that was not asked for is refused', async () => {
      using lanes = made()
      await expect(lanes.trace()).rejects.toThrow(/^trace: expected a LaneSet made with trace: true$/)
    })

    it('can be neither made nor changed nor read while its stream is recorded', async () => {
      using stream = Stream.create({ device })
      using lanes = made({ stream, trace: true })
      let reading: Promise<unknown> = Promise.resolve()
      expect(() => Graph.capture(stream, () => void made({ stream }))).toThrow(GraphCaptureError)
      expect(() => Graph.capture(stream, () => lanes.update({ laneOf: [0, 0, 0, 0] }))).toThrow(GraphCaptureError)
      Graph.capture(stream, () => {
        reading = lanes.trace()
        reading.catch(() => {})
      }).dispose()
      await expect(reading).rejects.toThrow(GraphCaptureError)
      lanes.update({ laneOf: [1, 1, 1, 1] })
      expect(await lanes.trace()).toEqual([[], []])
    })

    it('use after dispose; memory comes back', async () => {
      const stream = Stream.create({ device })
      const before = memoryStats(device).liveBytes
      const lanes = made({ stream, trace: true })
      expect(memoryStats(device).liveBytes).toBeGreaterThan(before)
      lanes.dispose()
      lanes.dispose()
      expect(lanes.disposed).toBe(true)
      expect(() => lanes.update({ laneOf: [0, 0, 0, 0] })).toThrow(DisposedError)
      expect(() => laneSetOf(lanes)).toThrow(DisposedError)
      await expect(lanes.trace()).rejects.toThrow(DisposedError)
      await stream.synchronize()
      expect(memoryStats(device).liveBytes).toBe(before)
      stream.dispose()
    })
  })
})
