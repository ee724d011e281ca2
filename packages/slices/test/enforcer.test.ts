// Who holds a device to plans: partitions that are counted, or shares; and faults that leave everything as it was.
import { DisposedError, OutOfMemoryError, Tensor, UnsupportedError } from '@nexus/native'
import { ExpertProfiler } from '@nexus/profiler'
import { describe, expect, test } from 'vitest'
import {
  type AllocationPolicy,
  describeDevice,
  policies,
  SliceAllocationError,
  SliceEnforcer,
  SliceManager,
  type SliceManagerOptions,
  SlicePartition,
} from '../src/index.js'
import { devices, noAddon, raw, replace } from './support/native.js'

const numExperts = 12
const skewed = [9000, 6000, 4000, 2000, 1000, 500, 250, 120, 60, 30, 10, 0]

function profile(counts: readonly number[], steps = 64) {
  const profiler = new ExpertProfiler({ numExperts: counts.length })
  for (let t = 0; t < steps; t++) profiler.record({ counts })
  return profiler.snapshot()
}

const quiet = () => new Promise((resolve) => setTimeout(resolve, 5))
async function until(met: () => boolean) {
  for (let i = 0; i < 1000 && !met(); i++) await quiet()
  expect(met()).toBe(true)
}

describe.skipIf(noAddon).each(devices)('an enforcer of %s', (device) => {
  const description = describeDevice(device)
  const { sms, granularity } = description
  const make = (enforcer: SliceEnforcer, options: Partial<SliceManagerOptions> = {}) =>
    new SliceManager({ device: description, numExperts, enforcer, dwellSteps: 0, ...options })
  const layout = (first: number) => ({
    key: `test ${first}`,
    slices: [
      { name: 'a', sms: first },
      { name: 'b', sms: sms - first },
    ],
  })

  test('in hardware mode builds what the plan says, and the budgets say what it is worth', () => {
    using enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = make(enforcer)
    const { plan } = manager
    const partition = enforcer.partition(plan)
    expect(partition?.slices.map(({ name, units }) => [name, units])).toEqual(
      plan.slices.map(({ name, grantedSms }) => [name, grantedSms]),
    )
    for (const [i, { enforcement, enforcementReason }] of plan.slices.entries()) {
      expect(enforcement).toBe(partition?.slices[i]?.enforcement)
      expect(enforcementReason).toBe(partition?.slices[i]?.reason)
    }
    expect(enforcer.partition('another')).toBeNull()
    expect(enforcer.stats()).toMatchObject({ mode: 'hardware', layouts: 1, partitions: 1, builds: 1 })
    manager.dispose()
    expect(enforcer.stats()).toMatchObject({ layouts: 0, partitions: 0 })
  })

  test('in cooperative mode builds nothing, and says so', () => {
    const before = SlicePartition.live
    using enforcer = new SliceEnforcer({ device, mode: 'cooperative' })
    using manager = make(enforcer)
    expect(SlicePartition.live).toBe(before)
    expect(enforcer.partition(manager.plan)).toBeNull()
    for (const { enforcement, grantedSms, requestedSms } of manager.plan.slices) {
      expect(enforcement).toBe('cooperative')
      expect(grantedSms).toBe(requestedSms)
    }
  })

  test('left to itself does what the device can, else shares, with the reason', () => {
    using enforcer = new SliceEnforcer({ device })
    using manager = make(enforcer)
    const kinds = new Set(manager.plan.slices.map(({ enforcement }) => enforcement))
    expect([...kinds]).toEqual([enforcer.mode])
    expect(enforcer.stats().reason).not.toBe('')
    if (enforcer.mode === 'cooperative') {
      expect(manager.plan.slices[0]?.enforcementReason).toContain(enforcer.stats().reason)
    }
  })

  test('left to itself turns to shares when the device refuses to be cut after all', () => {
    const info = { units: sms, granularity, minimum: 1, enforcement: 0, reason: 'so it says' }
    replace('partitionInfo', () => () => info)
    replace('partitionCreate', () => () => {
      throw raw('UNSUPPORTED', 'not this driver')
    })
    using enforcer = new SliceEnforcer({ device })
    expect(enforcer.mode).toBe('hardware')
    using manager = make(enforcer)
    expect(manager.plan.slices[0]).toMatchObject({
      enforcement: 'cooperative',
      enforcementReason: expect.stringContaining('not this driver'),
    })
    expect(enforcer.mode).toBe('cooperative')
    using hard = new SliceEnforcer({ device, mode: 'hardware' })
    expect(() => make(hard)).toThrow(SliceAllocationError)
  })

  test('of a device that cannot be cut is refused in hardware mode', () => {
    replace('partitionInfo', () => () => ({
      units: sms,
      granularity,
      minimum: 1,
      enforcement: 3,
      reason: 'an old driver',
    }))
    expect(() => new SliceEnforcer({ device, mode: 'hardware' })).toThrow(UnsupportedError)
    expect(() => new SliceEnforcer({ device, mode: 'hardware' })).toThrow(/an old driver/)
    using enforcer = new SliceEnforcer({ device })
    expect(enforcer.mode).toBe('cooperative')
  })

  test('counts who uses a layout: it goes with the last', () => {
    using enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const [first, second] = [make(enforcer), make(enforcer)]
    expect(enforcer.stats()).toMatchObject({ layouts: 1, builds: 1 })
    const partition = enforcer.partition(first.plan)
    expect(partition).toBe(enforcer.partition(second.plan))
    first.dispose()
    expect(partition?.disposed).toBe(false)
    second.dispose()
    expect(partition?.disposed).toBe(true)
    expect(enforcer.stats()).toMatchObject({ layouts: 0, partitions: 0 })
  })

  test('hundreds of resizes leave no partition behind, also when its streams had work', async () => {
    const before = SlicePartition.live
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = make(enforcer, { maxLayouts: 2 })
    manager.allocate({ name: 'aux', sms: granularity })
    const tensors: Tensor[] = []
    for (let i = 0; i < 300; i++) {
      const portions = 1 + (i % Math.min(4, Math.floor(sms / granularity) - 2))
      const budget = manager.resize('aux', portions * granularity)
      expect(budget.grantedSms).toBe(portions * granularity)
      const stream = enforcer.partition(manager.plan)?.stream('aux')
      if (i % 10 === 0 && stream) tensors.push(Tensor.zeros([4096], { stream }))
      expect(enforcer.stats().layouts).toBeLessThanOrEqual(2)
    }
    for (const tensor of tensors) tensor.dispose()
    // Every change was a build: too few layouts are kept for anything else.
    expect(enforcer.stats().builds).toBeGreaterThan(290)
    manager.dispose()
    await until(() => enforcer.stats().partitions === 0)
    expect(SlicePartition.live).toBe(before)
    enforcer.dispose()
  })

  test('has layouts built ahead: a change is a switch', () => {
    using enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    using manager = make(enforcer, { policy: policies.dynamic() })
    manager.update(profile(skewed))
    manager.buildAhead()
    const { builds } = enforcer.stats()
    expect(builds).toBeGreaterThan(1)
    const { key } = manager.plan
    const plan = manager.update(profile(skewed, 65), { utilization: [1, 0.5, 0.4] })
    expect(plan.key).not.toBe(key)
    expect(enforcer.stats().builds).toBe(builds)
    expect(enforcer.partition(plan)).not.toBeNull()
  })

  test.each([
    ['out of memory', raw('OUT_OF_MEMORY', 'no room', { requested: 4096, available: 12 }), OutOfMemoryError],
    ['a fault of the device', raw('DEVICE', 'it broke', { nativeError: 'CUDA_ERROR_UNKNOWN' }), Error],
    ['a size that is not possible', raw('INVALID_ARGUMENT', 'units[0]: too many'), Error],
  ])('%s while building: a typed error with its cause, the old plan holds, and nothing is left', (_, fault, kind) => {
    const before = SlicePartition.live
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = make(enforcer)
    manager.allocate({ name: 'aux', sms: granularity })
    const { plan } = manager
    let broken = true
    replace('partitionCreate', (real) => (...args) => {
      if (broken) throw fault
      return real(...args)
    })
    const resize = () => manager.resize('aux', 2 * granularity)
    expect(resize).toThrow(SliceAllocationError)
    try {
      resize()
    } catch (error) {
      const { cause } = error as SliceAllocationError
      expect(cause).toBeInstanceOf(SliceAllocationError)
      expect((cause as Error).cause).toBeInstanceOf(kind)
    }
    expect(() => manager.buildAhead()).toThrow(SliceAllocationError)
    expect(manager.plan).toBe(plan)
    expect(enforcer.partition(plan)?.disposed).toBe(false)
    expect(enforcer.stats().failures).toBe(3)
    broken = false
    expect(manager.resize('aux', 2 * granularity).grantedSms).toBe(2 * granularity)
    manager.dispose()
    expect(SlicePartition.live).toBe(before)
  })

  test('whoever holds a partition keeps it over a change of layout', async () => {
    const before = SlicePartition.live
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = make(enforcer, { maxLayouts: 1 })
    manager.allocate({ name: 'aux', sms: granularity })
    const partition = enforcer.partition(manager.plan)
    const hold = partition?.hold()
    manager.resize('aux', 2 * granularity)
    expect(enforcer.partition(manager.plan)).not.toBe(partition)
    expect(partition?.stream('aux').width).toBe(granularity)
    manager.dispose()
    enforcer.dispose()
    expect(partition?.stream('aux').width).toBe(granularity)
    hold?.dispose()
    await partition?.closed()
    expect(SlicePartition.live).toBe(before)
  })

  test('disposed of, gives all back, and refuses more', () => {
    const before = SlicePartition.live
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = make(enforcer)
    enforcer.dispose()
    enforcer.dispose()
    expect(SlicePartition.live).toBe(before)
    expect(() => enforcer.prepare(layout(granularity))).toThrow(DisposedError)
    expect(() => manager.allocate({ name: 'aux', sms: granularity })).toThrow(SliceAllocationError)
    manager.dispose()
  })

  test('two layers that share a manager share its plan, and churn stays within the dwell', () => {
    const before = SlicePartition.live
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = make(enforcer, { policy: policies.proportional(), dwellSteps: 10 })
    const profilers = [skewed, [...skewed].reverse()].map((counts) => {
      const profiler = new ExpertProfiler({ numExperts })
      return { profiler, counts }
    })
    for (let t = 0; t < 100; t++) {
      for (const { profiler, counts } of profilers) {
        profiler.record({ counts })
        const plan = manager.update(profiler.snapshot())
        expect(enforcer.partition(plan)?.disposed).toBe(false)
        expect(plan.slices.reduce((sum, { grantedSms }) => sum + grantedSms, 0)).toBe(sms)
      }
    }
    expect(manager.stats().switches).toBeLessThanOrEqual(20)
    manager.dispose()
    expect(enforcer.stats()).toMatchObject({ layouts: 0, partitions: 0 })
    expect(SlicePartition.live).toBe(before)
    enforcer.dispose()
  })

  test('a policy that throws or decides nonsense builds nothing', () => {
    using enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    let answer: () => unknown = () => ({ sms: [sms], sliceOf: skewed.map(() => 0), reason: 'all' })
    const moody: AllocationPolicy = { name: 'moody', decide: () => answer() as ReturnType<AllocationPolicy['decide']> }
    using manager = make(enforcer, { policy: moody })
    const { builds } = enforcer.stats()
    for (const bad of [
      () => {
        throw new Error('no')
      },
      () => null,
      () => ({ sms: [2 * sms], sliceOf: skewed.map(() => 0), reason: 'too many' }),
      () => ({ sms: [sms], sliceOf: skewed.map(() => 7), reason: 'nowhere' }),
    ]) {
      answer = bad
      expect(() => manager.update(profile(skewed))).toThrow(SliceAllocationError)
    }
    expect(enforcer.stats().builds).toBe(builds)
  })

  test('wrong options are named', () => {
    expect(() => new SliceEnforcer({ device, mode: 'soft' as 'auto' })).toThrow(/options\.mode/)
    expect(() => new SliceEnforcer({ devise: device } as never)).toThrow(/did you mean 'device'/)
    using enforcer = new SliceEnforcer({ device, mode: 'cooperative' })
    expect(() => enforcer.partition(7 as never)).toThrow(/layout: expected a layout or its key, got 7/)
    const slices = Array.from({ length: 65 }, (_, i) => ({ name: `s${i}`, sms: 1 }))
    expect(() => enforcer.prepare({ key: 'many', slices })).toThrow(SliceAllocationError)
  })
})
