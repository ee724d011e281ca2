// Streams to spread work over: forked and joined by events, without the host.
import { DisposedError, Stream, Tensor } from '@nexus/native'
import { expect, it } from 'vitest'
import { StreamPool } from '../src/index.js'
import { onEachDevice } from './support/work.js'

onEachDevice('StreamPool', (device) => {
  it('has eight streams, or as many as asked', () => {
    using pool = new StreamPool({ device })
    expect([pool.size, pool.device]).toEqual([8, device])
    expect(new Set(pool.streams).size).toBe(8)
    using three = new StreamPool({ device, size: 3, priorities: [-1] })
    expect(three.streams).toHaveLength(3)
    expect(three.stream(2)).toBe(three.streams[2])
  })

  it('forks and joins: what was queued before is seen, what comes after waits', async () => {
    using pool = new StreamPool({ device, size: 4 })
    using main = Stream.create({ device })
    for (let round = 0; round < 20; round++) {
      using filled = Tensor.randn([1 << 16], { stream: main, seed: round })
      const streams = pool.fork(main, 3)
      expect(streams).toEqual(pool.streams.slice(0, 3))
      const made = streams.map((stream, i) => Tensor.randn([1 << 14], { stream, seed: 100 + i }))
      pool.join(main, streams)
      await main.synchronize()
      // Joined: all of it is there once `main` is.
      for (const tensor of [filled, ...made]) expect((await tensor.toFloat32Array()).some((v) => v !== 0)).toBe(true)
      for (const tensor of made) tensor.dispose()
    }
  })

  it('forks from one of its own streams too', async () => {
    using pool = new StreamPool({ device, size: 2 })
    const streams = pool.fork(pool.stream(0))
    pool.join(pool.stream(0), streams)
    await pool.stream(0).synchronize()
  })

  it('names what is wrong, and refuses work once disposed of', () => {
    expect(() => new StreamPool({ device, size: 0 })).toThrow(/options\.size/)
    expect(() => new StreamPool({ device, priorities: [1] })).toThrow(/options\.priorities\[0\]/)
    expect(() => new StreamPool({ device, size: 1, priorities: [0, 0] })).toThrow(/at most 1 numbers/)
    expect(() => new StreamPool({ devise: device } as never)).toThrow(/did you mean 'device'/)
    const pool = new StreamPool({ device, size: 2 })
    expect(() => pool.stream(2)).toThrow(/i: expected an integer from 0 to 1/)
    expect(() => pool.fork(pool.stream(0), 3)).toThrow(/count/)
    pool.dispose()
    pool.dispose()
    expect(() => pool.stream(0)).toThrow(DisposedError)
    expect(() => pool.fork(Stream.default(device))).toThrow(DisposedError)
    expect(() => pool.join(Stream.default(device))).toThrow(DisposedError)
  })
})
