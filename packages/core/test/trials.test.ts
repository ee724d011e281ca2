/** Strategies are tried by a few steps: the better one is found whatever the model says, and what trials cost stays within bounds. */
import { afterEach, expect, test, vi } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { MoELayer, type MoELayerOptions, type StrategyName, Stream, Tensor } from '../src/index.js'
import { Chooser } from '../src/scheduling/choice.js'
import { ExecPlans, fusedWanted, type Wanted } from '../src/scheduling/exec.js'
import { StepTimer } from '../src/scheduling/timer.js'
import { Trial, Trials } from '../src/scheduling/trials.js'

const names = ['fused', 'cooperative', 'tiered'] as const
type Times = Readonly<Partial<Record<StrategyName, number>>>

/** Steps and decisions as a layer has them, with a device that takes what `truth` says where the model says `model`. */
function simulated(every = 16) {
  const trials = new Trials({ every, captureAfter: 1 })
  const chooser = new Chooser({ leastGain: 0.03, dwellSteps: 4 * every })
  const ways = names.map((strategy): Wanted => ({ ...fusedWanted, strategy, key: strategy }))
  let step = 0
  let held: StrategyName = 'fused'
  let reason = ''
  const steps: StrategyName[] = []
  const timed: { strategy: StrategyName; bucket: number; us: number }[] = []
  const decide = (model: Times, bucket: number) => {
    const modelled = names.map((strategy) => ({ strategy, us: model[strategy] ?? 100 }))
    for (const { strategy, bucket: of, us } of timed.splice(0)) {
      trials.running?.took(strategy, us)
      chooser.observe(strategy, us, model[strategy] ?? 100, of)
    }
    trials.settle(step, modelled)
    const choice = chooser.choose(step, modelled, 'the last window', bucket, trials.unready(bucket, names))
    held = choice.strategy
    reason = choice.reason
    trials.begin(step, bucket, held, modelled, ways)
  }
  return {
    trials,
    steps,
    get held() {
      return held
    },
    get reason() {
      return reason
    },
    run(count: number, truth: Times, model: Times = {}, bucket = 256) {
      for (let i = 0; i < count; i++) {
        const running = trials.running?.bucket === bucket ? trials.running : null
        const strategy = running?.during ? running.wanted.strategy : held
        const us = truth[strategy] ?? Number.NaN
        if (running ? running.timing : step % every === 0) timed.push({ strategy, bucket, us })
        running?.stepped(strategy, running.timing, 5)
        steps.push(strategy)
        if (++step % every === 0) decide(model, bucket)
      }
    },
  }
}
const olmoe256 = { fused: 206.7, tiered: 182.8, cooperative: 185.7 }
const olmoe64 = { fused: 174.8, tiered: 660.6, cooperative: 262.2 }

test('what measures faster is found within a warm-up of 96 steps, though the model sees 1 %', () => {
  const it = simulated()
  it.run(96, olmoe256, { fused: 100, tiered: 100, cooperative: 99 })
  expect(it.held).toBe('tiered')
  expect(it.reason).toBe('tiered: measured 182.8 us against fused 206.7 us, cooperative 185.7 us by the last window')
  expect(it.trials.stats()).toMatchObject({ count: 2, failed: 0, running: null, last: { us: 182.8, bucket: 256 } })
  it.run(9904, olmoe256, { fused: 100, tiered: 100, cooperative: 99 })
  expect(it.held).toBe('tiered')
})

test('what measures slower is never settled on, whatever the model promises', () => {
  const it = simulated()
  it.run(10000, olmoe64, { fused: 100, tiered: 50, cooperative: 80 })
  const longest = it.steps.reduce((most, name, i, all) => {
    let n = 0
    while (name !== 'fused' && all[i + n] === name) n++
    return Math.max(most, n)
  }, 0)
  expect(longest).toBeLessThanOrEqual(5)
  expect(it.reason).toMatch(/^fused: slicing does not pay: measured 174.8 us against/)
})

test.each([
  ['much slower', olmoe64],
  ['somewhat slower', { fused: 100, tiered: 118, cooperative: 110 }],
  ['alike', { fused: 100, tiered: 101, cooperative: 102 }],
] as const)('the price over 10000 steps is under 0.5 %: %s', (_, truth) => {
  const it = simulated()
  it.run(10000, truth)
  const taken: Times = truth
  const extra = it.steps.reduce((sum, name) => sum + (taken[name] ?? Number.NaN) - truth.fused, 0)
  expect(it.trials.stats().count).toBeGreaterThanOrEqual(2)
  expect(extra / (10000 * truth.fused)).toBeLessThan(0.005)
  expect(it.trials.stats().extraSteps).toBeCloseTo(extra / truth.fused, 3)
  expect(it.steps.filter((name) => name !== 'fused').length).toBeLessThanOrEqual(10 + 10000 / 200)
})

test('what was half as slow again is left alone 16 times as long', () => {
  const tries = (tiered: number) => {
    const it = simulated()
    it.run(60000, { fused: 100, tiered, cooperative: 1000 })
    return it.steps.filter((name) => name === 'tiered').length / 5
  }
  expect(tries(100)).toBeGreaterThan(16 * (tries(150) - 1))
  expect(tries(150)).toBe(4)
})

test('a load that has become another is tried sooner', () => {
  const it = simulated()
  const drift = { fused: 100, tiered: 80, cooperative: 100 }
  it.run(8192, { fused: 100, tiered: 150, cooperative: 150 })
  expect(it.held).toBe('fused')
  it.run(2048, { fused: 100, tiered: 70, cooperative: 150 }, drift)
  expect(it.held).toBe('tiered')
})

test('token buckets are kept apart', () => {
  const it = simulated()
  for (let i = 0; i < 4; i++) {
    it.run(96, olmoe256, {}, 256)
    expect(it.held).toBe('tiered')
    it.run(96, olmoe64, {}, 64)
    expect(it.held).toBe('fused')
  }
  expect(it.trials.stats().count).toBe(4)
})

test('one disturbed step decides nothing', () => {
  const it = simulated()
  const once = { ...olmoe256, fused: 90 }
  it.run(17, olmoe256)
  it.run(1, once)
  it.run(78, olmoe256)
  expect(it.held).toBe('tiered')
})

onEachDevice('trials of a layer', (device) => {
  const shape: MoELayerOptions = { inputDim: 32, hiddenDim: 24, numExperts: 8, topK: 2, device }
  afterEach(() => vi.restoreAllMocks())

  /** Steps are timed as ever; what they took the device is told from a table, and the host takes 5 us: what a busy machine makes of them is not. */
  const clock = (times: Times): void => {
    const { stepped } = Trial.prototype
    vi.spyOn(Trial.prototype, 'stepped').mockImplementation(function (this: Trial, strategy, timed) {
      stepped.call(this, strategy, timed, 5)
    })
    const { take } = StepTimer.prototype
    vi.spyOn(StepTimer.prototype, 'take').mockImplementation(function (this: StepTimer) {
      return take.call(this).map((each) => ({ ...each, ms: (times[each.strategy] ?? 1) / 1e3 }))
    })
  }
  const warmedUp = async (steps: number, options: MoELayerOptions) => {
    const layer = await MoELayer.create(options)
    await using plain = await MoELayer.create(shape)
    using x = Tensor.randn([64, 32], { device, dtype: device === 'cpu' ? 'f32' : 'bf16', seed: 5 })
    using expected = plain.enqueue(x)
    const bytes = await expected.toArray()
    for (let i = 0; i < steps; i++) {
      using output = layer.enqueue(x)
      if (i % 8 === 7) await Stream.default(device).synchronize()
      if (i % 3 === 0) expect(await output.toArray()).toEqual(bytes)
    }
    return layer
  }

  // On every device there are 'fused', 'cooperative' and 'streams'.
  const auto: MoELayerOptions = {
    ...shape,
    slices: { updateEverySteps: 16, enforcement: 'cooperative' },
    streams: { count: 3 },
    graphs: { captureAfter: 1 },
  }

  test.each([{ captureAfter: 1 }, true, false] as const)(
    'a warm-up of 96 steps is enough to take the faster one, with the same bytes (graphs: %j)',
    async (graphs) => {
      clock({ fused: 206.7, streams: 182.8, cooperative: 185.7 })
      await using layer = await warmedUp(96, { ...auto, graphs })
      expect(layer.plan.strategy).toBe('streams')
      expect(layer.plan.reason).toMatch(
        /^streams: measured 182\.8 us against fused 206\.7 us, cooperative 185\.7 us by/,
      )
      const { strategy } = layer.performanceStats()
      expect(strategy?.trials).toMatchObject({ count: 2, failed: 0, last: { bucket: 64, failure: null } })
      expect(strategy?.steps.cooperative).toBeGreaterThanOrEqual(5)
    },
  )

  test('the slower ones are left again', async () => {
    clock({ fused: 174.8, streams: 660.6, cooperative: 262.2 })
    await using layer = await warmedUp(128, auto)
    expect(layer.plan.reason).toMatch(/^fused: slicing does not pay: measured 174\.8 us against/)
    // Where graphs are recorded a little later or sooner, a trial has a step more or less.
    const steps = layer.performanceStats().strategy?.steps
    expect(steps?.streams).toBeLessThanOrEqual(8)
    expect(steps?.cooperative).toBeLessThanOrEqual(8)
    expect(steps?.fused).toBeGreaterThanOrEqual(112)
  })

  test('what cannot be built has failed, is told, and is not tried again soon', async () => {
    clock({ fused: 206.7, streams: 182.8, cooperative: 185.7 })
    const { get } = ExecPlans.prototype
    vi.spyOn(ExecPlans.prototype, 'get').mockImplementation(function (this: ExecPlans, wanted, stream) {
      if (wanted.strategy === 'streams') throw new Error('out of streams')
      return get.call(this, wanted, stream)
    })
    await using layer = await warmedUp(160, auto)
    const { strategy } = layer.performanceStats()
    expect(strategy).toMatchObject({ name: 'cooperative', failures: 1, lastFailure: { during: 'build' } })
    expect(strategy?.trials).toMatchObject({ count: 2, failed: 1 })
    expect(strategy?.steps.streams).toBe(0)
    expect(strategy?.reason).toMatch(/not tried: streams$/)
  })
})
