// Tenants in the slices of a plan: the same bits as undivided, where they ran, and that none is held up or taken down by another.
import { DisposedError, Graph, Stream, Tensor } from '@nexus/native'
import { binding, bufferOf, streamOf } from '@nexus/native/binding'
import type { RoutedTokens } from '@nexus/router-kernels'
import { describeDevice, SlicePartition } from '@nexus/slices'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type ScheduleOptions,
  StreamPool,
  schedule,
  type Tenant,
  type TenantResult,
  type TenantStep,
  tenant,
} from '../src/index.js'
import { liveMemory, modes, onEachDevice, planOf, problem, sizes, whole } from './support/work.js'

const turns = (numExperts: number, slices: number) => Array.from({ length: numExperts }, (_, e) => e % slices)

async function until(met: () => boolean) {
  for (let i = 0; i < 2000 && !met(); i++) await new Promise((resolve) => setTimeout(resolve, 2))
  expect(met()).toBe(true)
}

onEachDevice('experts in slices', (device) => {
  it.each(modes)('%s: the same bits as undivided, for any plan, moved midway', async (mode) => {
    const shapes = fc.record({
      numExperts: fc.integer({ min: 1, max: 9 }),
      tokens: fc.integer({ min: 0, max: 40 }),
      topK: fc.integer({ min: 1, max: 2 }),
      dtype: fc.constantFrom('f32', 'bf16'),
      seed: fc.nat(1000),
      slices: fc.integer({ min: 1, max: 4 }),
      draws: fc.array(fc.nat(100), { minLength: 18, maxLength: 18 }),
      trace: fc.boolean(),
      pooled: fc.option(fc.integer({ min: 1, max: 4 })),
    })
    await fc.assert(
      fc.asyncProperty(shapes, async ({ slices: most, draws, trace, pooled, topK: k, ...shape }) => {
        const { numExperts } = shape
        const slices = Math.min(most, numExperts)
        // Every slice has an expert, the rest are anywhere.
        const put = (from: number) =>
          Array.from({ length: numExperts }, (_, e) => (e < slices ? e : (draws[from + e] ?? 0) % slices))
        const work = problem(device, { ...shape, topK: Math.min(k, numExperts), width: 8 })
        const held = planOf(device, mode, slices, put(0))
        const moved = planOf(device, 'none', slices, put(9))
        const pool = pooled === null ? null : new StreamPool({ device, size: pooled })
        const steps = schedule(held.plan, { tenants: [rest(work)], partition: held.partition, pool, trace })
        try {
          const expected = await whole(work)
          for (let step = 0; step < 3; step++) {
            const { tenants } = await steps.run()
            expect(tenants[0]?.error).toBeNull()
            expect(await rowsOf(tenants[0])).toEqual(expected)
            if (step === 0) steps.follow(moved.plan)
          }
        } finally {
          steps.dispose()
          pool?.dispose()
          held.dispose()
          moved.dispose()
          work.dispose()
        }
      }),
      { numRuns: 40 },
    )
  })

  it('hardware: each lane runs on the SMs of its slice, and the lanes share none', async () => {
    const work = problem(device, { numExperts: 6, tokens: 64, width: 64 })
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    using steps = schedule(held.plan, {
      tenants: [{ name: 'all', ...rest(work) }],
      partition: held.partition,
      trace: true,
    })
    for (let step = 0; step < 10; step++) await steps.run()
    const [trace] = await steps.trace()
    expect(trace?.lanes.map(({ slice }) => slice)).toEqual(held.plan.slices.map(({ name }) => name))
    const seen = new Set<number>()
    for (const [s, { units }] of (trace?.lanes ?? []).entries()) {
      expect(units.length).toBeGreaterThan(0)
      expect(units.length).toBeLessThanOrEqual(held.plan.slices[s]?.grantedSms ?? 0)
      for (const unit of units) {
        expect(seen.has(unit)).toBe(false)
        seen.add(unit)
      }
    }
    // Cleared by reading.
    for (const { units } of (await steps.trace())[0]?.lanes ?? []) expect(units).toEqual([])
    const { tenants } = await steps.run()
    expect(tenants[0]?.lanes.map(({ slice }) => slice).sort()).toEqual(['cold', 'hot', 'warm'])
    for (const { ms } of tenants[0]?.lanes ?? []) expect(ms).toBeGreaterThanOrEqual(0)
    expect(steps.stats().tenants[0]).toMatchObject({ name: 'all', slice: null, steps: 11, errors: 0 })
    steps.dispose()
    held.dispose()
    work.dispose()
  })

  it.each(modes)('%s: an expert moves into a slice that had none, and back', async (mode) => {
    const work = problem(device)
    const expected = await whole(work)
    const held = planOf(device, mode, 2, turns(6, 2))
    const { granularity } = describeDevice(device)
    held.manager.allocate({ name: 'aux', sms: granularity })
    const { plan } = held.manager
    const partition = held.enforcer?.partition(plan) ?? null
    using steps = schedule(plan, { partition, tenants: [rest(work)], trace: true })
    const lanes = async () => {
      const { tenants } = await steps.run()
      expect(await rowsOf(tenants[0])).toEqual(expected)
      return (await steps.trace())[0]?.lanes.map(({ slice, units }) => [slice, units.length > 0])
    }
    const two = [
      ['hot', true],
      ['cold', true],
    ]
    expect(await lanes()).toEqual(two)
    steps.follow(held.manager.migrate(3, 'aux'))
    expect(await lanes()).toEqual([...two, ['aux', true]])
    steps.follow(held.manager.migrate(3, null))
    expect(await lanes()).toEqual(two)
    steps.dispose()
    held.dispose()
    work.dispose()
  })

  it.each(modes)('%s: recorded as a graph, beside a busy neighbour, keeps bits and places', async (mode) => {
    const work = problem(device, { tokens: 64, width: 64 })
    const expected = await whole(work)
    const held = planOf(device, mode, 3, turns(6, 3))
    held.manager.allocate({ name: 'busy', sms: describeDevice(device).granularity })
    const { plan } = held.manager
    const partition = held.enforcer?.partition(plan) ?? null
    let busy = 0
    using steps = schedule(plan, {
      partition,
      trace: true,
      tenants: [
        { name: 'a', ...rest(work) },
        { name: 'busy', enqueue: (stream) => void Tensor.randn([1 << 16], { stream, seed: busy++ }).dispose() },
      ],
    })
    // What the first step sets up cannot be recorded.
    await steps.tenant('a').enqueue().done()
    await steps.trace()
    let value: unknown
    using graph = Graph.capture(steps.tenant('a').stream, () => {
      value = steps.tenant('a').enqueue().value
    })
    // Recording runs nothing.
    expect((await steps.trace())[0]?.lanes.every(({ units }) => units.length === 0)).toBe(true)
    for (let step = 0; step < 30; step++) {
      steps.tenant('busy').enqueue().dispose()
      graph.launch(Stream.default(device))
    }
    await Stream.default(device).synchronize()
    expect(busy).toBe(30)
    expect(await rowsOf({ value } as TenantResult)).toEqual(expected)
    const [trace] = await steps.trace()
    const units = trace?.lanes.flatMap((lane) => lane.units) ?? []
    for (const lane of trace?.lanes ?? []) expect(lane.units.length).toBeGreaterThan(0)
    if (mode === 'hardware') {
      expect(new Set(units).size).toBe(units.length)
      for (const { slice, units: own } of trace?.lanes ?? []) {
        expect(own.length).toBeLessThanOrEqual(plan.slices.find(({ name }) => name === slice)?.grantedSms ?? 0)
      }
    }
    steps.dispose()
    held.dispose()
    work.dispose()
  })

  it('cooperative: one launch, and the budgets say so', async () => {
    const work = problem(device, { numExperts: 6, tokens: 64 })
    const held = planOf(device, 'cooperative', 3, turns(6, 3))
    using steps = schedule(held.plan, { tenants: [{ ...rest(work) }], trace: true })
    const expected = await whole(work)
    const { tenants } = await steps.run()
    expect(await rowsOf(tenants[0])).toEqual(expected)
    expect(tenants[0]?.lanes).toEqual([])
    expect(steps.stats().tenants[0]?.enforcement).toBe('cooperative')
    const [trace] = await steps.trace()
    expect(trace?.lanes.map(({ units }) => units.length > 0)).toEqual([true, true, true])
    steps.dispose()
    held.dispose()
    work.dispose()
  })

  it.each(modes)('%s: all of a tenant in one slice that it names', async (mode) => {
    const work = problem(device)
    const held = planOf(device, mode, 3, turns(6, 3))
    using steps = schedule(held.plan, {
      tenants: [{ ...rest(work), slice: 'cold', name: 'only' }],
      partition: held.partition,
    })
    const { tenants } = await steps.run()
    expect(tenants[0]).toMatchObject({ name: 'only', slice: 'cold', error: null })
    expect(await rowsOf(tenants[0])).toEqual(await whole(work))
    const [told] = steps.stats().tenants
    if (mode === 'hardware') expect(told?.width).toBe(held.plan.slices[2]?.grantedSms)
    else expect(told?.enforcement).toBe(mode === 'cooperative' ? 'cooperative' : 'none')
    steps.dispose()
    held.dispose()
    work.dispose()
  })
})

const bytesOf = (array: ArrayBufferView) => Buffer.from(array.buffer, array.byteOffset, array.byteLength)

/** What an experts tenant gave. */
async function rowsOf(result: TenantResult | undefined) {
  if (!(result?.value instanceof Tensor)) throw new Error(`no rows: ${String(result?.error)}`)
  return await result.value.toArray()
}

/** The fields of a problem that a tenant has. */
function rest({ experts, x, routed }: { experts: unknown; x: unknown; routed: unknown }) {
  return { experts, x, routed } as Extract<Tenant, { experts: unknown }>
}

onEachDevice('schedule', (device) => {
  const fill =
    (elements: number, times = 1) =>
    (stream: Stream) => {
      for (let i = 0; i < times; i++) Tensor.randn([elements], { stream, seed: i }).dispose()
    }

  it('runs a step of all tenants, each on a stream of its slice, and says what each returned', async () => {
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    const streams: Stream[] = []
    const took = (stream: Stream, ...more: unknown[]) => {
      streams.push(stream)
      return more
    }
    using steps = schedule(held.plan, {
      partition: held.partition,
      tenants: [
        { name: 'hot', enqueue: took },
        { name: 'b', slice: 'warm', enqueue: took, args: [1, 'two'] },
        { slice: 'cold', tenant: { [tenant]: took }, args: [3] },
        { name: 'free', slice: null, enqueue: took },
        Object.assign(() => undefined, { [tenant]: took }),
      ],
    })
    const { tenants, ms } = await steps.run({ args: { b: [4] } })
    expect(tenants.map(({ name, slice, value, error }) => [name, slice, value, error])).toEqual([
      ['hot', 'hot', [], null],
      ['b', 'warm', [4], null],
      ['tenant-2', 'cold', [3], null],
      ['free', null, [], null],
      [tenants[4]?.name, null, [], null],
    ])
    expect(ms).toBeGreaterThanOrEqual(0)
    for (const each of tenants) expect(each.ms).toBeGreaterThanOrEqual(0)
    expect(new Set(streams).size).toBe(5)
    const budgets = held.plan.slices.map(({ grantedSms }) => grantedSms)
    expect(streams.slice(0, 3).map(({ width }) => width)).toEqual(budgets)
    expect(steps.tenant('b').stream).toBe(streams[1])
    expect(steps.tenant('b').enqueue().value).toEqual([1, 'two'])
    expect(steps.tenant('b').enqueue(5).value).toEqual([5])
    steps.dispose()
    held.dispose()
  })

  it('a fast tenant does not wait for a slow one', async () => {
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    const work = problem(device, { tokens: 8 })
    using steps = schedule(held.plan, {
      partition: held.partition,
      tenants: [
        { name: 'slow', slice: 'hot', enqueue: fill(device === 'cpu' ? 1 << 20 : 1 << 26, 20) },
        { name: 'fast', slice: 'cold', ...rest(work) },
      ],
    })
    const slow = Array.from({ length: 3 }, () => steps.tenant('slow').enqueue()).at(-1) as TenantStep
    for (let step = 0; step < 20; step++) {
      using fast = steps.tenant('fast').enqueue()
      const value = (await fast.done()) as Tensor
      expect(fast.ready).toBe(true)
      expect(value.shape).toEqual([16, 16])
    }
    // The gate: all of the fast one's steps are done, and the slow one is still at it.
    expect(slow.ready).toBe(false)
    await slow.done()
    expect(slow.ready).toBe(true)
    steps.dispose()
    held.dispose()
    work.dispose()
  }, 60_000)

  it.each(['hardware', 'none'] as const)(
    '%s: lanes begin behind the tenant’s stream, and a step ends when all of them have',
    async (mode) => {
      const width = device === 'cpu' ? 128 : 1024
      const work = problem(device, { tokens: 256, width })
      const expected = await whole(work)
      // One expert in the slice where the step begins and ends, five in the other: that one is late.
      const held = planOf(device, mode, 2, [0, 1, 1, 1, 1, 1])
      using out = Tensor.zeros([512, width], { device })
      using steps = schedule(held.plan, { partition: held.partition, tenants: [{ name: 'a', ...rest(work), out }] })
      for (let round = 0; round < 5; round++) {
        // Cleared late on the tenant's stream: a lane that does not wait for that is cleared away.
        const { stream } = steps.tenant('a')
        fill(1 << 18)(stream)
        binding().native.bufferFill(streamOf(stream), bufferOf(out), 0)
        using step = steps.tenant('a').enqueue()
        // Not waited for: reading it is ordered behind the step.
        const got = await out.toArray()
        expect(Buffer.compare(bytesOf(got), bytesOf(expected))).toBe(0)
        await step.done()
      }
      steps.dispose()
      held.dispose()
      work.dispose()
    },
  )

  it('other work can wait for a step', async () => {
    const held = planOf(device, 'none', 2, [0, 1])
    const work = problem(device, { numExperts: 2 })
    using steps = schedule(held.plan, { tenants: [{ name: 'a', ...rest(work) }] })
    using other = Stream.create({ device })
    using step = steps.tenant('a').enqueue()
    step.before(other)
    await other.synchronize()
    expect(step.ready).toBe(true)
    steps.dispose()
    held.dispose()
    work.dispose()
  })

  it('starts after a stream, and another goes on after it', async () => {
    const held = planOf(device, 'none', 2, [0, 1])
    using before = Stream.create({ device })
    using behind = Stream.create({ device })
    const made: Tensor[] = []
    using steps = schedule(held.plan, {
      device,
      tenants: [{ name: 'a', enqueue: (stream) => made.push(Tensor.randn([1 << 18], { device, stream })) }],
    })
    fill(1 << 20, 4)(before)
    const whole = steps.run({ after: before, into: behind })
    await behind.synchronize()
    await before.synchronize()
    await whole
    expect(made).toHaveLength(1)
    made[0]?.dispose()
    steps.dispose()
    held.dispose()
  })

  describe('a tenant that fails', () => {
    it('by throwing has its error, and the others go on', async () => {
      const held = planOf(device, 'none', 2, [0, 1])
      let ran = 0
      using steps = schedule(held.plan, {
        tenants: [
          { name: 'good', enqueue: () => ran++ },
          {
            name: 'bad',
            enqueue() {
              throw new Error('not today')
            },
          },
          { name: 'late', enqueue: () => Promise.reject(new Error('not today either')) },
          { name: 'also good', enqueue: async () => ran++ },
        ],
      })
      for (let step = 1; step <= 3; step++) {
        const { tenants, ms } = await steps.run()
        expect(tenants.map(({ error }) => (error as Error | null)?.message ?? null)).toEqual([
          null,
          'not today',
          'not today either',
          null,
        ])
        expect(tenants.map((each) => each.ms === null)).toEqual([false, true, true, false])
        expect(ms).not.toBeNull()
        expect(ran).toBe(2 * step)
      }
      expect(() => steps.tenant('bad').enqueue()).toThrow('not today')
      expect(steps.stats().tenants.map(({ errors }) => errors)).toEqual([0, 4, 3, 0])
      steps.dispose()
      held.dispose()
    })

    it.runIf(device === 'cpu')('in its work does not take the others down, nor the next schedule', async () => {
      const held = planOf(device, 'hardware', 3, turns(6, 3))
      const work = problem(device)
      // Slots out of range: the CPU finds out while it computes, and that stream has failed for good.
      using order = Tensor.from(new Int32Array(work.routed.order.size).fill(1 << 20), work.routed.order.shape, {
        device,
      })
      const wrong: RoutedTokens = { ...work.routed, order }
      const expected = await whole(work)
      const make = (routed: RoutedTokens) =>
        schedule(held.plan, {
          partition: held.partition,
          tenants: [
            { name: 'bad', ...rest({ ...work, routed }) },
            { name: 'good', ...rest(work) },
          ],
        })
      const steps = make(wrong)
      for (let step = 0; step < 3; step++) {
        const { tenants } = await steps.run()
        expect(tenants[0]).toMatchObject({ name: 'bad', ms: null, error: expect.any(Error) })
        expect(tenants[1]).toMatchObject({ name: 'good', error: null })
        expect(await rowsOf(tenants[1])).toEqual(expected)
      }
      steps.dispose()
      const again = make(work.routed)
      const { tenants } = await again.run()
      expect(tenants.map(({ error }) => error)).toEqual([null, null])
      again.dispose()
      held.dispose()
      work.dispose()
    })
  })

  it('disposed of in the middle of steps, ends them and gives all back', async () => {
    const before = await liveMemory(device)
    const partitions = SlicePartition.live
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    const work = problem(device, { tokens: 64, width: 32 })
    const expected = await whole(work)
    using out = Tensor.zeros([work.routed.tokens * work.routed.topK, 32], { device })
    const steps = schedule(held.plan, { partition: held.partition, tenants: [{ ...rest(work), out }], trace: true })
    const runs = [steps.run(), steps.run(), steps.run()]
    const step = steps.tenant('tenant-0').enqueue()
    steps.dispose()
    steps.dispose()
    held.dispose()
    expect(steps.disposed).toBe(true)
    expect(steps.stats().active).toBe(3)
    for (const { tenants } of await Promise.all(runs)) expect(tenants[0]?.error).toBeNull()
    await step.done()
    step.dispose()
    expect(await out.toArray()).toEqual(expected)
    await expect(steps.run()).rejects.toThrow(DisposedError)
    expect(() => steps.tenant('tenant-0').enqueue()).toThrow(DisposedError)
    expect(() => steps.follow(held.plan)).toThrow(DisposedError)
    await expect(steps.trace()).rejects.toThrow(DisposedError)
    expect(steps.stats()).toMatchObject({ active: 0, runs: 3 })
    work.dispose()
    out.dispose()
    await until(() => SlicePartition.live <= partitions)
    await settled(device, before)
  })

  it('hundreds of schedules over changing layouts leave nothing', async () => {
    const work = problem(device)
    await whole(work)
    const before = await liveMemory(device)
    const partitions = SlicePartition.live
    for (let i = 0; i < 150; i++) {
      const slices = 1 + (i % 3)
      const held = planOf(device, modes[i % modes.length] ?? 'none', slices, turns(6, slices))
      const steps = schedule(held.plan, { partition: held.partition, tenants: [rest(work)] })
      if (i % 2 === 0) await steps.run()
      else steps.tenant('tenant-0').enqueue().dispose()
      steps.dispose()
      held.dispose()
    }
    await until(() => SlicePartition.live <= partitions)
    await work.experts.forward(work.x, work.routed).toArray()
    work.dispose()
    expect((await liveMemory(device)).liveBuffers).toBeLessThanOrEqual(before.liveBuffers + 1)
  }, 60_000)

  it('ends with the signal, and what is queued is done all the same', async () => {
    const held = planOf(device, 'none', 2, [0, 1])
    const controller = new AbortController()
    const { signal } = controller
    const steps = schedule(held.plan, { tenants: [{ name: 'a', enqueue: fill(1 << 20, 30) }], signal })
    const run = steps.run()
    const reason = new Error('enough')
    controller.abort(reason)
    await expect(run).rejects.toBe(reason)
    await expect(steps.run()).rejects.toBe(reason)
    expect(() => steps.tenant('a').enqueue()).toThrow(reason)
    expect(steps.stats().tenants[0]?.steps).toBe(1)
    expect(() => schedule(held.plan, { tenants: [{ enqueue: fill(1) }], signal })).toThrow(reason)
    steps.dispose()
    await until(() => steps.stats().active === 0)
    held.dispose()
  })

  it('takes streams of a pool: one for each tenant at least, never shared', async () => {
    const held = planOf(device, 'none', 3, turns(6, 3))
    const work = problem(device)
    using pool = new StreamPool({ device, size: 3 })
    using steps = schedule(held.plan, {
      pool,
      tenants: [
        { name: 'a', ...rest(work) },
        { name: 'b', enqueue: fill(16) },
      ],
    })
    expect(pool.streams).toContain(steps.tenant('a').stream)
    expect(steps.tenant('b').stream).toBe(pool.stream(1))
    const { tenants } = await steps.run()
    expect(await rowsOf(tenants[0])).toEqual(await whole(work))
    const two = { enqueue: fill(1) }
    expect(() => schedule(held.plan, { pool, tenants: [two, two, two, two] })).toThrow(
      /pool: expected at least 4 streams, one for each tenant, got 3/,
    )
    expect(() => schedule(held.plan, { pool, tenants: [{ ...two, priority: -1 }] })).toThrow(/tenants\[0\]\.priority/)
    steps.dispose()
    expect(pool.stream(0).disposed).toBe(false)
    held.dispose()
    work.dispose()
  })

  it('uses a stream that it is given, and leaves it', async () => {
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    const work = problem(device)
    using stream = Stream.create({ device })
    using steps = schedule(held.plan, { partition: held.partition, tenants: [{ ...rest(work), name: 'a', stream }] })
    expect(steps.tenant('a').stream).toBe(stream)
    const { tenants } = await steps.run()
    expect(tenants[0]?.lanes).toHaveLength(3)
    expect(await rowsOf(tenants[0])).toEqual(await whole(work))
    steps.dispose()
    expect(stream.disposed).toBe(false)
    held.dispose()
    work.dispose()
  })

  it('holds the partition: the layout may change under it', async () => {
    const partitions = SlicePartition.live
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    const work = problem(device)
    const steps = schedule(held.plan, { partition: held.partition, tenants: [rest(work)] })
    held.dispose()
    const { tenants } = await steps.run()
    expect(await rowsOf(tenants[0])).toEqual(await whole(work))
    steps.dispose()
    await until(() => SlicePartition.live <= partitions)
    work.dispose()
  })

  it('schedules over one partition do not share streams', () => {
    const held = planOf(device, 'hardware', 2, [0, 1])
    const make = () => schedule(held.plan, { partition: held.partition, tenants: [{ name: 'hot', enqueue: fill(1) }] })
    const [a, b] = [make(), make()]
    const first = a.tenant('hot').stream
    expect(b.tenant('hot').stream).not.toBe(first)
    a.dispose()
    const c = make()
    expect(c.tenant('hot').stream).toBe(first)
    b.dispose()
    c.dispose()
    held.dispose()
  })

  it('wrong arguments are named, and nothing is left made', async () => {
    const before = await liveMemory(device)
    const held = planOf(device, 'hardware', 3, turns(6, 3))
    const work = problem(device)
    const { partition, plan } = held
    const attempt =
      (options: Partial<ScheduleOptions> | object, of: unknown = plan) =>
      () =>
        schedule(of as typeof plan, { partition, tenants: [{ enqueue: fill(1) }], ...options } as ScheduleOptions)
    expect(attempt({}, null)).toThrow(/plan: expected a Plan, got null/)
    expect(attempt({ tenants: [] })).toThrow(/tenants: expected at least one/)
    expect(attempt({ tenants: {} })).toThrow(/tenants: expected an array/)
    expect(attempt({ tenants: [null] })).toThrow(/tenants\[0\]: expected a tenant, got null/)
    expect(attempt({ tenants: [{}] })).toThrow(/tenants\[0\]: expected enqueue, experts, or an object with a method/)
    expect(attempt({ tenants: [{ enqueue: 7 }] })).toThrow(/tenants\[0\]: expected enqueue/)
    expect(attempt({ tenants: [{ tenant: {} }] })).toThrow(/tenants\[0\]\.tenant: expected an object with a method/)
    expect(attempt({ tenants: [{ enqueue: fill(1), slices: 'hot' }] })).toThrow(/did you mean 'slice'/)
    expect(attempt({ tenants: [{ enqueue: fill(1), slice: 'tepid' }] })).toThrow(
      /tenants\[0\]\.slice: expected one of hot, warm, cold, got 'tepid'/,
    )
    const two = { name: 'x', enqueue: fill(1) }
    expect(attempt({ tenants: [two, two] })).toThrow(/there are two tenants 'x'/)
    expect(attempt({ tenants: [{ ...two, stream: Stream.default(device), slice: 'hot' }] })).toThrow(/got both/)
    expect(attempt({ tenants: [{ ...two, priority: 1 }] })).toThrow(/tenants\[0\]\.priority/)
    expect(attempt({ tenants: [{ ...rest(work), experts: {} }] })).toThrow(/tenants\[0\]\.experts/)
    using small = Tensor.zeros([1, 1], { device })
    expect(attempt({ tenants: [{ ...rest(work), out: small }] })).toThrow(/out: expected f32 \[48, 16\]/)
    expect(attempt({ pool: {} })).toThrow(/pool: expected a StreamPool/)
    expect(attempt({ signal: {} })).toThrow(/signal: expected an AbortSignal/)
    expect(attempt({ partition: {} })).toThrow(/partition: expected a SlicePartition/)
    expect(attempt({ trace: 1 })).toThrow(/trace: expected a boolean/)
    const other = planOf(device, 'hardware', 2, [0, 1])
    expect(attempt({ partition: other.partition })).toThrow(/partition: expected the slices hot=.*, got hot=/)
    expect(attempt({ tenants: [rest(work)], partition: other.partition }, other.plan)).toThrow(
      /tenant 'tenant-0': expected experts for a plan of 2, got 6/,
    )
    const hard = { ...plan, slices: plan.slices.map((slice) => ({ ...slice, enforcement: 'hardware' as const })) }
    expect(attempt({ partition: null }, hard)).toThrow(/partition: expected the partition of/)
    const steps = schedule(plan, { partition, tenants: [{ name: 'a', enqueue: fill(1) }] })
    expect(() => steps.tenant('b')).toThrow(/name: expected one of a, got 'b'/)
    await expect(steps.run({ args: { b: [] } })).rejects.toThrow(/unknown option 'b'/)
    await expect(steps.run({ args: { a: 1 as never } })).rejects.toThrow(/options\.args\.a: expected an array/)
    expect(() => steps.follow(other.plan)).toThrow(/make another schedule/)
    steps.dispose()
    other.dispose()
    held.dispose()
    work.dispose()
    small.dispose()
    await settled(device, before)
    expect(sizes(device, 3)).toHaveLength(3)
  })
})

/** Memory is given back in stream order: a moment after the last use. */
async function settled(device: Stream['device'], before: { liveBytes: number; liveBuffers: number }) {
  for (let i = 0; i < 200; i++) {
    if ((await liveMemory(device)).liveBuffers <= before.liveBuffers) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  expect(await liveMemory(device)).toEqual(before)
}
