// The latency-bounded scheduler: the slice follows the p99, without flapping, and the bits are those of the undivided layers all the while.
import { type Stream, Tensor } from '@nexus/native'
import { SlicePartition } from '@nexus/slices'
import { describe, expect, it, onTestFinished } from 'vitest'
import { latencyBounded } from '../src/latency-bounded.js'
import { makeLayer, wholeStep } from '../src/layer.js'
import { liveBuffers, missingAddon, sleep } from './support/machine.js'

const shape = { numExperts: 6, topK: 2, inputDim: 32, hiddenDim: 64 } as const
const windowSteps = 4

/** A tenant whose step takes `work` milliseconds on one SM, and the nth part of it on n. */
function slowedBy(work: { ms: number }) {
  return { name: 'bounded', enqueue: async (stream: Stream) => await sleep(work.ms / stream.width) }
}

async function windows(scheduler: ReturnType<typeof latencyBounded>, count: number): Promise<number[]> {
  const sizes: number[] = []
  for (let i = 0; i < count; i++) {
    for (let step = 0; step < windowSteps; step++) await scheduler.step()
    sizes.push(scheduler.state().sms)
  }
  return sizes
}

describe.skipIf(missingAddon !== null)(`latency bounded${missingAddon === null ? '' : ` (${missingAddon})`}`, () => {
  // Sleeps end late on a busy machine, never early: hence the retries, and what a failed attempt made goes with it.
  it('grows a portion at a time until the bound is met, and no further', { retry: 3 }, async () => {
    const scheduler = latencyBounded('cpu', 4, [slowedBy({ ms: 300 })], { boundMs: 130, windowSteps })
    onTestFinished(() => scheduler.dispose())
    expect(scheduler.state()).toEqual({ sms: 1, p99Ms: null })
    // 300, 150, 100 ms: within the bound, but above seven tenths of it.
    expect(await windows(scheduler, 4)).toEqual([2, 3, 3, 3])
    expect(scheduler.state().p99Ms).toBeGreaterThan(99)
    expect(scheduler.state().p99Ms).toBeLessThan(130)
  })

  it('shrinks after three calm windows, and later each time that it was a mistake', { retry: 3 }, async () => {
    const work = { ms: 1000 }
    const scheduler = latencyBounded('cpu', 4, [slowedBy(work)], { boundMs: 80, windowSteps: 1 })
    onTestFinished(() => scheduler.dispose())
    const next = async (count: number) => {
      const sizes: number[] = []
      for (let i = 0; i < count; i++) {
        await scheduler.step()
        sizes.push(scheduler.state().sms)
      }
      return sizes
    }
    expect(await next(4)).toEqual([2, 3, 4, 5])
    // 40 ms on five, 50 on four, 67 on three: the last is not calm.
    work.ms = 200
    expect(await next(8)).toEqual([5, 5, 4, 4, 4, 3, 3, 3])
    // Calm on three (50 ms), too slow on two only because the work grows when it has shrunk: the next time it waits for six windows.
    work.ms = 150
    expect(await next(3)).toEqual([3, 3, 2])
    work.ms = 200
    expect(await next(1)).toEqual([3])
    work.ms = 150
    expect(await next(6)).toEqual([3, 3, 3, 3, 3, 2])
  })

  it('a bound that cannot be met ends with the largest slice there can be, and goes on', async () => {
    const layer = makeLayer('cpu', shape)
    const x = Tensor.randn([4, shape.inputDim], { device: 'cpu' })
    const enqueue = (stream: Stream) => wholeStep(layer, x, stream)
    const scheduler = latencyBounded('cpu', 4, [{ name: 'bounded', enqueue }], { boundMs: 1e-6, windowSteps: 1 })
    for (let i = 0; i < 12; i++) ((await scheduler.step()) as Tensor).dispose()
    // One is left for the experts of the others.
    expect(scheduler.state().sms).toBe(7)
    scheduler.dispose()
    for (const part of [x, layer]) part.dispose()
  })

  it('both tenants have the bits of their undivided layers through every resize', async () => {
    // Those of the tests before may still be on their way out.
    await expect.poll(() => SlicePartition.live, { timeout: 20_000 }).toBe(0)
    const before = await liveBuffers('cpu')
    const [decode, prefill] = [makeLayer('cpu', shape), makeLayer('cpu', { ...shape, seed: 5 })]
    const many = Tensor.randn([64, shape.inputDim], { device: 'cpu', seed: 6 })
    const routed = prefill.router.route(many)
    const expectedRows = await (async () => {
      using rows = prefill.experts.forward(many, routed)
      return await rows.toArray()
    })()
    const tenants = [
      { name: 'bounded', enqueue: (stream: Stream, x: Tensor) => wholeStep(decode, x, stream) },
      { name: 'prefill', experts: prefill.experts, x: many, routed },
    ]
    const scheduler = latencyBounded('cpu', shape.numExperts, tenants, { boundMs: 1e-6, windowSteps: 2 })
    const seen = new Set<number>()
    for (let seed = 0; seed < 16; seed++) {
      using beside = scheduler.tenant('prefill').enqueue()
      using x = Tensor.randn([5, shape.inputDim], { device: 'cpu', seed })
      using y = (await scheduler.step(x)) as Tensor
      using whole = wholeStep(decode, x)
      expect(await y.toArray()).toEqual(await whole.toArray())
      const rows = (await beside.done()) as Tensor
      if (!rows.disposed) expect(await rows.toArray()).toEqual(expectedRows)
      seen.add(scheduler.state().sms)
    }
    expect([...seen]).toEqual([1, 2, 3, 4, 5, 6, 7])
    // After a resize, the other tenant is the new schedule's.
    using last = scheduler.tenant('prefill').enqueue()
    expect(await ((await last.done()) as Tensor).toArray()).toEqual(expectedRows)
    scheduler.dispose()
    for (const part of [many, routed, decode, prefill]) part.dispose()
    await expect.poll(() => SlicePartition.live, { timeout: 20_000 }).toBe(0)
    await expect.poll(() => liveBuffers('cpu'), { timeout: 20_000 }).toBe(before)
  })

  it('a tenant that throws rejects that step alone', async () => {
    let broken = true
    const enqueue = () => {
      if (broken) throw new RangeError('out of tokens')
      return 'fine'
    }
    const scheduler = latencyBounded('cpu', 4, [{ name: 'bounded', enqueue }], { boundMs: 1000, windowSteps: 4 })
    await expect(scheduler.step()).rejects.toThrow('out of tokens')
    broken = false
    expect(await scheduler.step()).toBe('fine')
    scheduler.dispose()
  })
})
