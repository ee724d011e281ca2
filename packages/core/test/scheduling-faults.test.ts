/** What goes wrong beside the data path: the layer goes on with the plan that it has and says so, or is clearly dead; nothing leaks. */
import { channel } from 'node:diagnostics_channel'
import { expect, test } from 'vitest'
import { liveMemory, onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  type AllocationPolicy,
  type CoreMessage,
  describeDevice,
  MoELayer,
  type MoELayerOptions,
  policies,
  SliceManager,
  SlicePartition,
  Stream,
  Tensor,
} from '../src/index.js'
import { restless } from './plans.js'

onEachDevice('scheduling faults', (device) => {
  const shape: MoELayerOptions = { inputDim: 32, hiddenDim: 24, numExperts: 8, topK: 2, device }
  const input = (tokens: number, seed = tokens) =>
    Tensor.randn([tokens, 32], { device, dtype: device === 'cpu' ? 'f32' : 'bf16', seed })
  const settled = async (): Promise<void> => {
    await Stream.default(device).synchronize()
    // Partitions close when their streams have done their work.
    for (let i = 0; i < 200 && SlicePartition.live > 0; i++) await new Promise((resolve) => setTimeout(resolve, 5))
  }
  const live = async () => {
    await settled()
    // What a plan held goes behind the streams of its lanes, on a thread of its own: soon, not now.
    let memory = await liveMemory(device)
    for (let quiet = 0; quiet < 5; ) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      const now = await liveMemory(device)
      quiet = now.liveBytes === memory.liveBytes && now.liveBuffers === memory.liveBuffers ? quiet + 1 : 0
      memory = now
    }
    return { ...memory, partitions: SlicePartition.live }
  }

  /** Good until the given decision, then what `bad` does. */
  const failing = (decisions: number, bad: AllocationPolicy['decide']): AllocationPolicy => {
    let made = 0
    const good = policies.proportional()
    return {
      name: 'failing',
      decide: (snapshot) => (made++ < decisions ? good.decide(snapshot) : bad(snapshot)),
    }
  }

  test.each<[string, AllocationPolicy['decide'], RegExp]>([
    [
      'throws',
      () => {
        throw new Error('no idea')
      },
      /policy 'failing' threw: no idea/,
    ],
    [
      'returns nonsense',
      () => ({ sms: [1e6], sliceOf: [], reason: '' }),
      /policy 'failing' decided what cannot be done/,
    ],
    ['returns nothing', () => undefined as never, /policy 'failing' decided what cannot be done/],
  ])('a policy that %s: the last plan holds, and the error is told', async (_, bad, message) => {
    const told: CoreMessage[] = []
    const listen = (each: unknown): void => {
      told.push(each as CoreMessage)
    }
    channel('nexus:core').subscribe(listen)
    try {
      await using plain = await MoELayer.create(shape)
      await using layer = await MoELayer.create({
        ...shape,
        strategy: 'cooperative',
        slices: { policy: failing(2, bad), updateEverySteps: 2 },
      })
      using x = input(40)
      const { output: expected } = await plain.forward(x)
      using _expected = expected
      for (let i = 0; i < 12; i++) {
        const { output } = await layer.forward(x)
        expect(await output.toArray()).toEqual(await expected.toArray())
        output.dispose()
      }
      const { strategy, slices } = layer.performanceStats()
      expect(strategy?.failures).toBeGreaterThan(1)
      expect(strategy?.lastFailure).toMatchObject({ during: 'plan', code: 'ERR_NEXUS_ALLOCATION' })
      expect(strategy?.lastFailure?.message).toMatch(message)
      expect(slices?.plan).toEqual(layer.plan.slices)
      expect(told.length).toBe(strategy?.failures)
      expect(told[0]).toMatchObject({ type: 'scheduling-error', during: 'plan', error: expect.any(Error) })
    } finally {
      channel('nexus:core').unsubscribe(listen)
    }
  })

  test('a policy that fails at once: the layer is not made, and nothing is left', async () => {
    const before = await live()
    const policy = failing(0, () => {
      throw new Error('never')
    })
    await expect(MoELayer.create({ ...shape, slices: { policy } })).rejects.toMatchObject({
      code: 'ERR_NEXUS_ALLOCATION',
    })
    expect(await live()).toEqual(before)
  })

  test('an assignment that throws midway: the last plan holds', async () => {
    let calls = 0
    const assignment = {
      name: 'moody',
      assign: (costs: readonly number[], lanes: number) => {
        if (calls++ > 2) throw new Error('not today')
        return costs.map((_, e) => e % lanes)
      },
    }
    await using layer = await MoELayer.create({ ...shape, strategy: 'streams', streams: { count: 3, assignment } })
    using x = input(8)
    const failed = () => (layer.performanceStats().strategy?.failures ?? 0) > 0
    for (let decision = 0; decision < 2000 && !failed(); decision++) {
      for (let i = 0; i < 16; i++) layer.enqueue(x).dispose()
      await Stream.default(device).synchronize()
    }
    expect(layer.performanceStats().strategy?.lastFailure?.message).toMatch(/'moody' threw: not today/)
    expect(layer.plan.streams?.streamOf).toEqual([0, 1, 2, 0, 1, 2, 0, 1])
  })

  test('a layout that cannot be built: the steps go on as they were, and it is told', async () => {
    const manager = new SliceManager({ device: describeDevice(device), numExperts: 8, slices: 2 })
    await using layer = await MoELayer.create({
      ...shape,
      strategy: 'tiered',
      slices: { manager, updateEverySteps: 1 },
    })
    await using plain = await MoELayer.create(shape)
    using x = input(24)
    layer.enqueue(x).dispose()
    const build = SlicePartition.build
    SlicePartition.build = () => {
      throw new Error('out of green contexts')
    }
    try {
      const portion = Math.max(manager.device.granularity, manager.device.minSms)
      manager.allocate({ name: 'other', sms: portion })
      for (let i = 0; i < 3; i++) {
        using output = layer.enqueue(x)
        const { output: expected } = await plain.forward(x)
        expect(await output.toArray()).toEqual(await expected.toArray())
        expected.dispose()
      }
      expect(layer.performanceStats().strategy?.lastFailure).toMatchObject({
        during: 'build',
        message: expect.stringMatching(/out of green contexts/),
      })
      expect(layer.plan.reason).toMatch(/could not be built/)
    } finally {
      SlicePartition.build = build
    }
    manager.release('other')
    // A layout that was not tried in vain is built at once; the other one is tried again after a while.
    layer.enqueue(x).dispose()
    layer.enqueue(x).dispose()
    expect(layer.plan.reason).toMatch(/^tiered was asked for/)
    manager.allocate({ name: 'other', sms: Math.max(manager.device.granularity, manager.device.minSms) })
    for (let i = 0; i < 16; i++) {
      layer.enqueue(x).dispose()
      await Stream.default(device).synchronize()
    }
    expect(layer.plan.reason).toMatch(/^tiered was asked for/)
    expect(layer.plan.slices).toEqual(manager.plan)
    manager.dispose()
    // Its manager is gone: the layer goes on with the last plan.
    layer.enqueue(x).dispose()
    layer.enqueue(x).dispose()
    expect(layer.disposed).toBe(false)
  })

  test('two layers share a manager: one feeds it, both follow, and either may go first', async () => {
    const before = await live()
    const manager = new SliceManager({ device: describeDevice(device), numExperts: 8, policy: policies.proportional() })
    const options: MoELayerOptions = { ...shape, strategy: 'tiered', slices: { manager, updateEverySteps: 1 } }
    const first = await MoELayer.create({ ...options, seed: 1 })
    const second = await MoELayer.create({ ...options, seed: 2 })
    const plain = await MoELayer.create({ ...shape, seed: 2 })
    const x = input(50)
    const { output: expected } = await plain.forward(x)
    for (let i = 0; i < 10; i++) {
      first.enqueue(x).dispose()
      using output = second.enqueue(x)
      expect(await output.toArray()).toEqual(await expected.toArray())
    }
    expect(second.plan.slices).toEqual(manager.plan)
    const { plans } = manager.stats()
    first.dispose()
    for (let i = 0; i < 10; i++) {
      using output = second.enqueue(x)
      expect(await output.toArray()).toEqual(await expected.toArray())
    }
    // The second one feeds it from here.
    expect(manager.stats().plans).toBeGreaterThan(plans)
    for (const each of [second, plain, x, expected, manager]) each.dispose()
    expect(await live()).toEqual(before)
  })

  test('hundreds of resizes in a row, with steps between: the same bits, and memory returns to its start', async () => {
    await using plain = await MoELayer.create(shape)
    using x = input(20)
    const { output: expected } = await plain.forward(x)
    using _ = expected
    const before = await live()
    {
      const manager = new SliceManager({
        device: describeDevice(device),
        numExperts: 8,
        policy: restless(3),
        dwellSteps: 0,
      })
      await using layer = await MoELayer.create({
        ...shape,
        strategy: 'tiered',
        slices: { manager, updateEverySteps: 1 },
        graphs: { captureAfter: 1, memoryBudgetBytes: 4 * 2 ** 20 },
      })
      const portion = Math.max(manager.device.granularity, manager.device.minSms)
      const most = Math.floor(manager.device.sms / portion) - 2
      manager.allocate({ name: 'other', sms: portion })
      const keys = new Set<string>()
      for (let i = 0; i < 300; i++) {
        manager.resize('other', portion * (1 + (i % Math.max(1, most))))
        const output = layer.enqueue(x)
        if (i % 10 === 0) expect(await output.toArray()).toEqual(await expected.toArray())
        output.dispose()
        keys.add(layer.plan.slices?.key ?? '')
      }
      expect(keys.size).toBeGreaterThan(2)
      expect(layer.performanceStats().strategy?.lastFailure).toBeNull()
      manager.dispose()
    }
    expect(await live()).toEqual(before)
  })

  test.each(['tiered', 'streams', 'cooperative', 'fused'] as const)(
    '%s: dispose during steps lets them finish',
    async (strategy) => {
      const before = await live()
      const plain = await MoELayer.create(shape)
      const layer = await MoELayer.create({ ...shape, strategy, graphs: { captureAfter: 1 }, profiler: true })
      const x = input(200)
      const { output: expected } = await plain.forward(x)
      for (let i = 0; i < 3; i++) layer.enqueue(x).dispose()
      const pending = [layer.forward(x), layer.forward(x)]
      const queued = layer.enqueue(x)
      await layer[Symbol.asyncDispose]()
      for (const { output } of await Promise.all(pending)) {
        expect(await output.toArray()).toEqual(await expected.toArray())
        output.dispose()
      }
      expect(await queued.toArray()).toEqual(await expected.toArray())
      expect(() => layer.enqueue(x)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))
      for (const each of [queued, x, expected, plain]) each.dispose()
      expect(await live()).toEqual(before)
    },
  )

  test('a loop of layers with everything on returns all memory', async () => {
    using x = input(33)
    const loop = async (): Promise<void> => {
      await using layer = await MoELayer.create({
        ...shape,
        shared: { hiddenDim: 8 },
        strategy: 'auto',
        slices: { updateEverySteps: 2 },
        streams: { count: 3 },
        graphs: { captureAfter: 1 },
        energy: true,
      })
      for (let i = 0; i < 8; i++) layer.enqueue(x).dispose()
    }
    await loop()
    const before = await live()
    for (let i = 0; i < 10; i++) await loop()
    expect(await live()).toEqual(before)
  })
})
