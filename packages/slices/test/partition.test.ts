// Layouts, built: streams that keep to their slice, and nothing left when they go.
import { DisposedError, OutOfMemoryError, Tensor } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { descriptionOf } from '../src/describe-device.js'
import { describeDevice, h200, SliceAllocationError, SlicePartition } from '../src/index.js'
import { devices, noAddon, raw, replace } from './support/native.js'

describe.skipIf(noAddon).each(devices)('a partition of %s', (device) => {
  const { sms, granularity, minSms } = describeDevice(device)
  const small = Math.max(minSms, granularity)
  const two = [
    { name: 'a', sms: small },
    { name: 'b', sms: sms - small },
  ]

  test('has the sizes that were asked for, and streams of that width', () => {
    using partition = SlicePartition.build(device, two)
    expect(partition.slices.map(({ name, units }) => [name, units])).toEqual(two.map((s) => [s.name, s.sms]))
    for (const { enforcement, reason } of partition.slices) {
      expect(['hardware', 'cooperative']).toContain(enforcement)
      expect(reason).not.toBe('')
    }
    expect(partition.stream('a').width).toBe(small)
    expect(partition.stream('b').width).toBe(sms - small)
    expect(partition.stream(1, { priority: -1 }).width).toBe(sms - small)
    expect(partition.stream('a').device).toBe(device)
  })

  test('makes a stream once for a slice, priority and index', () => {
    using partition = SlicePartition.build(device, two)
    const stream = partition.stream('a')
    expect(partition.stream(0)).toBe(stream)
    expect(partition.stream('a', { index: 0, priority: 0 })).toBe(stream)
    const others = [partition.stream('b'), partition.stream('a', { index: 1 }), partition.stream('a', { priority: -1 })]
    expect(new Set([stream, ...others]).size).toBe(4)
  })

  test('a stream that limits the bytes under way is one of its own, and computes the same', async () => {
    using partition = SlicePartition.build(device, two)
    const limited = partition.stream('a', { readAheadBytes: 8e6 })
    expect(limited).not.toBe(partition.stream('a'))
    expect(limited).not.toBe(partition.stream('a', { readAheadBytes: 4e6 }))
    expect(partition.stream('a', { readAheadBytes: 8e6 })).toBe(limited)
    expect(limited.width).toBe(small)
    using tensor = Tensor.randn([64], { stream: limited, seed: 3 })
    using expected = Tensor.randn([64], { device, seed: 3 })
    expect(await tensor.toFloat32Array()).toEqual(await expected.toFloat32Array())
    for (const readAheadBytes of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => partition.stream('a', { readAheadBytes })).toThrow(/readAheadBytes: expected an integer/)
    }
    expect(() => partition.stream('a', { readAheadBytes: '8 MB' as never })).toThrow(TypeError)
  })

  test('computes, and tensors made in it outlive it', async () => {
    const partition = SlicePartition.build(device, two)
    const tensor = Tensor.randn([64], { stream: partition.stream('b'), seed: 3 })
    using expected = Tensor.randn([64], { device, seed: 3 })
    partition.dispose()
    expect(await tensor.toFloat32Array()).toEqual(await expected.toFloat32Array())
    tensor.dispose()
    await partition.closed()
  })

  test('goes when its streams have done their work and nobody holds it', async () => {
    const before = SlicePartition.live
    const partition = SlicePartition.build(device, two)
    const hold = partition.hold()
    using tensor = Tensor.randn([1 << 20], { stream: partition.stream('a') })
    partition.dispose()
    expect(partition.disposed).toBe(false)
    expect(partition.stream('b', { index: 7 }).width).toBe(sms - small)
    hold.dispose()
    hold.dispose()
    expect(partition.disposed).toBe(true)
    expect(() => partition.stream('a')).toThrow(DisposedError)
    expect(() => partition.hold()).toThrow(DisposedError)
    await partition.closed()
    expect(partition.isClosed).toBe(true)
    expect(SlicePartition.live).toBe(before)
    expect((await tensor.toFloat32Array()).length).toBe(1 << 20)
    partition.dispose()
    expect(SlicePartition.live).toBe(before)
  })

  test('hundreds of them leave nothing', async () => {
    const before = SlicePartition.live
    for (let i = 0; i < 200; i++) {
      const partition = SlicePartition.build(device, two)
      if (i % 4 === 0) partition.stream(i % 2)
      partition.dispose()
      if (i % 4 === 0) await partition.closed()
    }
    expect(SlicePartition.live).toBe(before)
  })

  test('larger than the device is refused with the cause', () => {
    const before = SlicePartition.live
    const build = () => SlicePartition.build(device, [{ name: 'a', sms: 2 * sms }])
    expect(build).toThrow(SliceAllocationError)
    expect(build).toThrow(expect.objectContaining({ requestedSms: 2 * sms, cause: expect.any(Error) }))
    expect(SlicePartition.live).toBe(before)
  })

  test('is released when it cannot be finished', () => {
    const before = SlicePartition.live
    replace('partitionGrants', () => () => {
      throw raw('OUT_OF_MEMORY', 'no room', { requested: 1 })
    })
    expect(() => SlicePartition.build(device, two)).toThrow(
      expect.objectContaining({ name: 'SliceAllocationError', cause: expect.any(OutOfMemoryError) }),
    )
    expect(SlicePartition.live).toBe(before)
  })

  test('wrong arguments are named', () => {
    const build = (slices: unknown) => () => SlicePartition.build(device, slices as [])
    expect(build(null)).toThrow(/slices: expected an array, got null/)
    expect(build([])).toThrow(/slices: expected at least one/)
    expect(build([{ name: '', sms: 1 }])).toThrow(/slices\[0\]\.name/)
    expect(build([{ name: 'a', sms: 1.5 }])).toThrow(/slices\[0\]\.sms: expected an integer/)
    expect(build([{ name: 'a', sms: 1, size: 1 }])).toThrow(/unknown option 'size'/)
    expect(build([two[0], two[0]])).toThrow(/there are two slices 'a'/)
    using partition = SlicePartition.build(device, two)
    expect(() => partition.stream('c')).toThrow(/slice: expected one of a, b, got 'c'/)
    expect(() => partition.stream(2)).toThrow(/slice: expected an integer from 0 to 1, got 2/)
    expect(() => partition.stream(0, { index: -1 })).toThrow(/index/)
    expect(() => partition.stream(0, { priority: 1 })).toThrow(/priority/)
  })
})

describe.skipIf(noAddon)('the description of a device', () => {
  test('of the CPU: virtual workers, all alike', () => {
    const cpu = describeDevice('cpu')
    expect(cpu).toMatchObject({ name: 'CPU', granularity: 1, minSms: 1, persistingL2Bytes: null })
    expect(cpu.bandwidth).toHaveLength(1)
  })

  test('of an H200, and of a MIG instance of one: the measured curves, by its part of the SMs', () => {
    const facts = { granularity: 8, minimum: 8 }
    const each = { bandwidth: 1, rate: 1 }
    expect(descriptionOf('NVIDIA H200', each, { ...facts, units: 132 })).toEqual(h200)
    const half = descriptionOf('NVIDIA H200 MIG 3g.71gb', each, { ...facts, units: 66 })
    expect(half).toMatchObject({ sms: 66, granularity: 8, persistingL2Bytes: (h200.persistingL2Bytes ?? 0) / 2 })
    expect(half.bandwidth).toEqual(h200.bandwidth.map((p) => ({ sms: p.sms / 2, perSecond: p.perSecond / 2 })))
    // Fewer SMs than the smallest portion: all of them are one slice.
    expect(descriptionOf('another', each, { ...facts, units: 4 })).toMatchObject({ sms: 4, granularity: 4, minSms: 4 })
  })
})
