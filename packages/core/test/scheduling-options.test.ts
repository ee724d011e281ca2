/** Scheduling is off unless it is asked for, and what would silently do nothing is refused by name. */
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import {
  describeDevice,
  MoELayer,
  type MoELayerOptions,
  policies,
  type SchedulingOptions,
  SliceManager,
  Tensor,
} from '../src/index.js'
import { resolveScheduling } from '../src/scheduling/options.js'

const shape: MoELayerOptions = { inputDim: 8, hiddenDim: 6, numExperts: 4, topK: 2, device: 'cpu' }
const manager = (numExperts = 4) => new SliceManager({ device: describeDevice('cpu'), numExperts })

describe('what is on', () => {
  test.each<[string, SchedulingOptions, object | null]>([
    ['nothing', {}, null],
    [
      'everything named and off',
      { slices: false, streams: false, graphs: false, profiler: false, energy: false },
      null,
    ],
    ['slices: auto, with a profiler', { slices: true }, { strategy: 'auto', slices: { count: 3 }, profiler: {} }],
    ['streams: auto', { streams: { count: 3 } }, { strategy: 'auto', slices: null, streams: { count: 3 } }],
    ['tiered implies slices', { strategy: 'tiered' }, { slices: { enforcement: 'auto' }, updateEverySteps: null }],
    ['streams implies streams', { strategy: 'streams' }, { streams: { count: 8 }, slices: null }],
    ['auto implies slices', { strategy: 'auto' }, { slices: { count: 3 }, streams: null }],
    ['graphs alone stay fused', { graphs: true }, { strategy: 'fused', graphs: { captureAfter: 3 }, profiler: null }],
    ['a profiler can be off beside slices', { slices: true, profiler: false }, { profiler: null }],
  ])('%s', (_, options, expected) => {
    if (expected === null) expect(resolveScheduling(options)).toBeNull()
    else expect(resolveScheduling(options)).toMatchObject(expected)
  })

  test('off: no plan but fused, and null for every part in the statistics', async () => {
    await using layer = await MoELayer.create(shape)
    expect(layer.plan).toMatchObject({ strategy: 'fused', slices: null, streams: null, candidates: [] })
    const parts = { strategy: null, slices: null, streams: null, graphs: null, profiler: null, energy: null }
    expect(layer.performanceStats()).toMatchObject(parts)
    await expect(layer.trace()).rejects.toThrow(/trace: true/)
  })
})

test('a layer of a checkpoint may be scheduled too', async () => {
  const directory = fileURLToPath(new URL('./fixtures/hf-dev/mixtral', import.meta.url))
  const options = { device: 'cpu', dtype: 'f32' } as const
  await using plain = await MoELayer.fromCheckpoint(directory, options)
  await using layer = await MoELayer.fromCheckpoint(directory, { ...options, strategy: 'tiered', graphs: true })
  using x = Tensor.randn([9, plain.config.experts.inputDim], { device: 'cpu' })
  using expected = plain.enqueue(x)
  for (let i = 0; i < 5; i++) {
    using y = layer.enqueue(x)
    expect(await y.toArray()).toEqual(await expected.toArray())
  }
  expect(layer.performanceStats()).toMatchObject({ strategy: { name: 'tiered' }, graphs: { captures: 1 } })
})

describe('refused by name', () => {
  test.each<[string, object, typeof TypeError | typeof RangeError, RegExp]>([
    ['an unknown strategy', { strategy: 'sliced' }, RangeError, /strategy.*'auto'.*'sliced'/],
    ['an unknown option of slices', { slices: { polcy: 1 } }, TypeError, /slices.*polcy.*policy/],
    ['an unknown option of streams', { streams: { number: 2 } }, TypeError, /streams.*number/],
    ['an unknown option of graphs', { graphs: { after: 2 } }, TypeError, /graphs.*after/],
    ['an unknown option of the profiler', { profiler: { window: 2 } }, TypeError, /profiler.*window/],
    ['slices that are no options', { slices: 3 }, TypeError, /slices.*3/],
    ['tiered without slices', { strategy: 'tiered', slices: false }, TypeError, /slices.*'tiered'/],
    ['streams without streams', { strategy: 'streams', streams: false }, TypeError, /streams.*'streams'/],
    ['fused with slices', { strategy: 'fused', slices: true }, TypeError, /slices.*'fused'/],
    ['streams with slices', { strategy: 'streams', slices: true }, TypeError, /slices.*'streams'/],
    ['tiered with streams', { strategy: 'tiered', streams: true }, TypeError, /streams.*'tiered'/],
    ['auto without a choice', { strategy: 'auto', slices: false, streams: false }, TypeError, /strategy.*'auto'/],
    [
      'tiered without partitions',
      { strategy: 'tiered', slices: { enforcement: 'cooperative' } },
      TypeError,
      /slices\.enforcement.*'tiered'/,
    ],
    [
      'cooperative with partitions',
      { strategy: 'cooperative', slices: { enforcement: 'hardware' } },
      TypeError,
      /slices\.enforcement.*'cooperative'/,
    ],
    ['a policy that is none', { slices: { policy: 'adaptive' } }, TypeError, /slices\.policy.*'adaptive'/],
    ['a manager that is none', { slices: { manager: {} } }, TypeError, /slices\.manager/],
    [
      'a policy beside a manager',
      { slices: { manager: manager(), policy: policies.static() } },
      TypeError,
      /slices\.policy.*slices\.manager/,
    ],
    ['no streams', { streams: { count: 0 } }, RangeError, /streams\.count.*0/],
    ['no step between decisions', { slices: { updateEverySteps: 0 } }, RangeError, /slices\.updateEverySteps.*0/],
    ['a capture without warm-up', { graphs: { captureAfter: 0 } }, RangeError, /graphs\.captureAfter.*0/],
    ['a trace without lanes', { trace: true }, TypeError, /trace.*'fused'/],
    ['a meter that is none', { energy: 'nvml' }, TypeError, /energy.*'nvml'/],
    ['a manager for other experts', { slices: { manager: manager(5) } }, RangeError, /slices\.manager.*4.*5/],
    ['more portions than there are', { slices: { total: 1000 } }, RangeError, /slices\.total.*1000/],
    ['a window of one step', { profiler: { windowSteps: 1 } }, RangeError, /windowSteps.*1/],
  ])('%s', async (_, options, type, message) => {
    const made = MoELayer.create({ ...shape, ...options })
    await expect(made).rejects.toThrow(type)
    await expect(made).rejects.toThrow(message)
  })

  test('of a checkpoint, before anything of it is read', async () => {
    const made = MoELayer.fromCheckpoint('/nowhere', { strategy: 'tiered', slices: false })
    await expect(made).rejects.toThrow(/slices.*'tiered'/)
  })

  test('a stream that is none', async () => {
    await using layer = await MoELayer.create(shape)
    await expect(layer.forward(new Float32Array(8), { stream: {} as never })).rejects.toThrow(/stream must be a Stream/)
  })
})
