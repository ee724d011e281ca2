import { ExpertProfiler } from '@nexus/profiler'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  type AllocationPolicy,
  auxSlice,
  type DeviceDescription,
  type Enforcer,
  gatedExpertCost,
  h200,
  type Layout,
  type Plan,
  policies,
  SliceAllocationError,
  SliceManager,
  type SliceManagerOptions,
} from '../src/index.js'

const numExperts = 12
const cost = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
const make = (options: Partial<SliceManagerOptions> = {}) =>
  new SliceManager({ device: h200, numExperts, cost, ...options })

/** A profile of a layer that has had these counts for some steps. */
function profile(counts: readonly number[], steps = 64) {
  const profiler = new ExpertProfiler({ numExperts: counts.length })
  for (let t = 0; t < steps; t++) profiler.record({ counts })
  return profiler.snapshot()
}
const skewed = [9000, 6000, 4000, 2000, 1000, 500, 250, 120, 60, 30, 10, 0]

/** What must hold of every plan of every manager. */
function sound(plan: Plan, device: DeviceDescription, experts = numExperts): void {
  expect(plan.slices.reduce((sum, { grantedSms }) => sum + grantedSms, 0)).toBe(device.sms)
  const names = plan.slices.map(({ name }) => name)
  expect(new Set(names).size).toBe(names.length)
  let odd = 0
  for (const { grantedSms, kind, experts: own } of plan.slices) {
    if (device.sms >= device.minSms && plan.slices.length > 1 && kind !== 'spare')
      expect(grantedSms).toBeGreaterThanOrEqual(device.minSms)
    if (grantedSms % device.granularity !== 0) odd++
    if (kind === 'policy') expect(own.length).toBeGreaterThan(0)
  }
  expect(odd).toBeLessThanOrEqual(1)
  expect(plan.sliceOf).toHaveLength(experts)
  for (const [e, s] of plan.sliceOf.entries()) expect(plan.slices[s]?.experts).toContain(e)
  expect(plan.slices.flatMap(({ experts: own }) => own).sort((a, b) => a - b)).toEqual(
    Array.from({ length: experts }, (_, e) => e),
  )
  expect(plan.slices.reduce((sum, { l2Share }) => sum + l2Share, 0)).toBeLessThanOrEqual(1 + 1e-9)
  expect(JSON.parse(JSON.stringify(plan))).toEqual(plan)
}

describe('a plan', () => {
  test('is there from the start, and after a profile has hot experts in the hot slice', () => {
    const manager = make()
    sound(manager.plan, h200)
    const plan = manager.update(profile(skewed))
    sound(plan, h200)
    expect(plan.slices.map(({ name }) => name)).toEqual(['hot', 'warm', 'cold'])
    expect(plan.slices[0]?.experts[0]).toBe(0)
    expect(plan.slices[2]?.experts.at(-1)).toBe(11)
    expect(plan).toMatchObject({ step: 64, device: 'NVIDIA H200', policy: 'adaptive', keptBecause: null })
    expect(plan.predictedUs).toBeGreaterThan(0)
  })
  test('says that nothing enforces it, and why, when no enforcer was given', () => {
    for (const slice of make().plan.slices) {
      expect(slice.enforcement).toBe('none')
      expect(slice.enforcementReason).toMatch(/no enforcer was given/)
    }
  })
  test('has a key that names the layout and not who is in it', () => {
    const manager = make({ policy: policies.proportional() })
    const plan = manager.update(profile(skewed))
    expect(plan.key).toBe(
      `NVIDIA H200: ${plan.slices.map(({ name, grantedSms }) => `${name}=${grantedSms}`).join(' ')}`,
    )
    const reversed = make({ policy: policies.proportional() }).update(profile([...skewed].reverse()))
    expect(reversed.key).toBe(plan.key)
    expect(reversed.sliceOf).not.toEqual(plan.sliceOf)
  })
  test('exists for a layer without experts, for one, and for a CPU of eight workers', () => {
    const none = new SliceManager({ device: h200, numExperts: 0 })
    sound(none.plan, h200, 0)
    expect(none.plan.slices).toMatchObject([{ name: 'spare', grantedSms: 132 }])
    const one = new SliceManager({ device: h200, numExperts: 1 })
    expect(one.plan.slices).toMatchObject([{ name: 'all', grantedSms: 132, experts: [0] }])
    const workers = { ...h200, name: 'CPU', sms: 8, granularity: 1, minSms: 1, persistingL2Bytes: null }
    sound(new SliceManager({ device: workers, numExperts: 5 }).plan, workers, 5)
  })
})

describe('reserved slices', () => {
  test('get what was asked, in portions, and the policy the rest', () => {
    const manager = make()
    const { slice, evicted } = manager.allocate({ name: 'aux', sms: 12, l2Share: 0.25, priority: 2 })
    expect(slice).toMatchObject({
      name: 'aux',
      kind: 'reserved',
      requestedSms: 12,
      grantedSms: 16,
      l2Share: 0.25,
      l2Bytes: 0.25 * 37.5 * 2 ** 20,
      bandwidthBytesPerSecond: 2.53e12,
      priority: 2,
    })
    expect(evicted).toEqual([])
    sound(manager.plan, h200)
    expect(manager.resize('aux', 40)).toMatchObject({ requestedSms: 40, grantedSms: 40 })
    sound(manager.plan, h200)
    manager.release('aux')
    sound(manager.plan, h200)
    expect(manager.plan.slices.some(({ name }) => name === 'aux')).toBe(false)
  })
  test('for shared experts is called aux, and may be there from the start', () => {
    const manager = make({ aux: { sms: 12, l2Share: 0.5 } })
    sound(manager.plan, h200)
    expect(manager.stats().plans).toBe(1)
    expect(manager.slice(auxSlice)).toMatchObject({ kind: 'reserved', grantedSms: 16, l2Share: 0.5 })
    // The window belongs to the whole device: a share of it is a wish.
    expect(manager.slice('aux').l2Enforcement).toBe('advisory')
    expect(manager.slice('hot').l2Enforcement).toBe('none')
    expect(() => make({ aux: { sms: 133 } })).toThrow(SliceAllocationError)
    expect(() => make({ aux: { size: 1 } as never })).toThrow(/options\.aux: unknown option 'size'/)
  })
  test('a bandwidth cap becomes SMs by the curve', () => {
    const { slice } = make().allocate({ name: 'decode', bandwidthBytesPerSecond: 2.6e12 })
    expect(slice).toMatchObject({ requestedSms: 16, grantedSms: 16, bandwidthCap: 2.6e12 })
    expect(make().allocate({ name: 'x', bandwidthBytesPerSecond: 2.6e12, sms: 8 }).slice.grantedSms).toBe(8)
  })
  test('are never oversubscribed: what was asked, what is free, and nothing has changed', () => {
    const manager = make()
    manager.allocate({ name: 'a', sms: 64, l2Share: 0.7 })
    const before = manager.plan
    const attempt = (act: () => unknown, expected: object) => {
      expect(act).toThrow(SliceAllocationError)
      expect(act).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_ALLOCATION', ...expected }))
      expect(manager.plan).toBe(before)
    }
    attempt(() => manager.allocate({ name: 'b', sms: 61 }), { requestedSms: 61, freeSms: 56 })
    attempt(() => manager.allocate({ name: 'b', sms: 133 }), { requestedSms: 133, freeSms: 56 })
    attempt(() => manager.resize('a', 128), { requestedSms: 128, freeSms: 120 })
    attempt(() => manager.allocate({ name: 'b', sms: 8, l2Share: 0.4 }), {
      message: "slice 'b': asked for 0.4 of the persisting L2 cache, 0.300 is free",
    })
  })
  test('of lower priority make room, the lowest first and then the youngest, when that is asked for', () => {
    const manager = make()
    manager.allocate({ name: 'low-old', sms: 32, priority: 1 })
    manager.allocate({ name: 'low-young', sms: 32, priority: 1 })
    manager.allocate({ name: 'high', sms: 32, priority: 5 })
    expect(() => manager.allocate({ name: 'new', sms: 48, priority: 3 })).toThrow(SliceAllocationError)
    expect(manager.allocate({ name: 'new', sms: 48, priority: 3, evict: true }).evicted).toEqual(['low-young'])
    sound(manager.plan, h200)
    const before = manager.plan
    expect(() => manager.allocate({ name: 'more', sms: 88, priority: 4, evict: true })).not.toThrow()
    expect(manager.plan).not.toBe(before)
    expect(manager.plan.slices.map(({ name }) => name).slice(-2)).toEqual(['high', 'more'])
    expect(manager.stats().evictions).toBe(3)
    const after = manager.plan
    expect(() => manager.allocate({ name: 'last', sms: 120, priority: 5, evict: true })).toThrow(
      /also after evicting what has a lower priority/,
    )
    expect(manager.plan).toBe(after)
  })
  test('bad requests are refused by name', () => {
    const manager = make()
    const allocate = (request: unknown) => () => manager.allocate(request as { name: string })
    expect(allocate({ name: 'hot', sms: 8 })).toThrow(/request\.name: expected a name that no slice of a policy has/)
    expect(allocate({ name: 'a' })).toThrow(/request\.sms: expected a number of SMs, or bandwidthBytesPerSecond/)
    expect(allocate({ name: 'a', sms: 1.5 })).toThrow(/request\.sms: expected an integer/)
    expect(allocate({ name: 'a', sms: 8, size: 1 })).toThrow(/unknown option 'size'/)
    manager.allocate({ name: 'a', sms: 8 })
    expect(allocate({ name: 'a', sms: 8 })).toThrow(/there is a slice 'a' already/)
    expect(() => manager.resize('hot', 8)).toThrow(/expected a reserved slice \(a\), got 'hot'/)
    expect(() => manager.release('b')).toThrow(RangeError)
    expect(() => manager.migrate(12, 'a')).toThrow(/expert: expected an integer from 0 to 11, got 12/)
    expect(() => manager.update(profile([1, 2]))).toThrow(/profile\.numExperts: expected 12, got 2/)
  })
})

describe('migration', () => {
  test('puts an expert into a reserved slice for good, and back', () => {
    const manager = make()
    manager.allocate({ name: 'aux', sms: 16 })
    manager.migrate(3, 'aux')
    expect(manager.slice('aux').experts).toEqual([3])
    sound(manager.update(profile(skewed)), h200)
    expect(manager.slice('aux').experts).toEqual([3])
    sound(manager.migrate(3, null), h200)
    expect(manager.slice('aux').experts).toEqual([])
    manager.migrate(3, 'aux')
    manager.release('aux')
    sound(manager.plan, h200)
  })
  test('of all experts leaves the policy none: no SM lies idle', () => {
    const manager = make()
    manager.allocate({ name: 'a', sms: 16, priority: 1 })
    manager.allocate({ name: 'b', bandwidthBytesPerSecond: 2.6e12, priority: 9 })
    for (let e = 0; e < numExperts; e++) manager.migrate(e, 'a')
    sound(manager.plan, h200)
    // The capped one stays within its cap, so the other has the rest.
    expect(manager.slice('a')).toMatchObject({ requestedSms: 16, grantedSms: 116 })
    expect(manager.slice('b').grantedSms).toBe(16)
    sound(manager.migrate(5, null), h200)
    expect(manager.slice('a').grantedSms).toBe(16)
  })
  test('back to the policy needs SMs there', () => {
    const manager = new SliceManager({ device: h200, numExperts: 1 })
    manager.allocate({ name: 'a', sms: 8 })
    manager.migrate(0, 'a')
    manager.resize('a', 132)
    expect(() => manager.migrate(0, null)).toThrow(/the policy's slices need 8 SMs for it, 0 are not reserved/)
    sound(manager.plan, h200, 1)
  })
})

describe('churn', () => {
  const swaps: AllocationPolicy = {
    name: 'swaps',
    decide({ step, constraints, load }) {
      const first = step % 2 === 0 ? 64 : 72
      return { sms: [first, constraints.sms - first], sliceOf: load.map((_, e) => e % 2), reason: 'swap' }
    },
  }
  test('sizes stay for the dwell', () => {
    const manager = make({ policy: swaps, dwellSteps: 10 })
    const profiler = new ExpertProfiler({ numExperts })
    let changes = 0
    let kept = 0
    for (let t = 0; t < 100; t++) {
      profiler.record({ counts: skewed })
      const before = manager.plan.key
      const plan = manager.update(profiler.snapshot())
      if (plan.key !== before) changes++
      if (plan.keptBecause === 'dwell') kept++
    }
    expect(changes).toBeLessThanOrEqual(10)
    expect(changes).toBeGreaterThan(5)
    expect(manager.stats()).toMatchObject({ switches: changes, kept: { dwell: kept, hysteresis: 0 } })
  })
  test('the dwell begins anew when a reservation changes the sizes', () => {
    const manager = make({ policy: swaps, dwellSteps: 10 })
    manager.update(profile(skewed, 64))
    manager.allocate({ name: 'aux', sms: 16 })
    expect(manager.update(profile(skewed, 65)).keptBecause).toBe('dwell')
    expect(manager.update(profile(skewed, 75)).keptBecause).toBeNull()
  })
  test('small changes are not made', () => {
    const manager = make({ policy: swaps, dwellSteps: 0, hysteresisSms: 16 })
    const { key } = manager.update(profile(skewed, 64))
    expect(manager.update(profile(skewed, 65))).toMatchObject({ key, keptBecause: 'hysteresis' })
  })
})

describe('a policy that fails', () => {
  test('leaves the plan as it was', () => {
    let fail = false
    const moody: AllocationPolicy = {
      name: 'moody',
      decide(snapshot) {
        if (fail) throw new Error('not today')
        return policies.proportional().decide(snapshot)
      },
    }
    const manager = make({ policy: moody })
    const before = manager.update(profile(skewed))
    fail = true
    expect(() => manager.update(profile([...skewed].reverse()))).toThrow(SliceAllocationError)
    expect(() => manager.allocate({ name: 'aux', sms: 8 })).toThrow(/policy 'moody' threw: not today/)
    expect(manager.plan).toBe(before)
    fail = false
    expect(manager.allocate({ name: 'aux', sms: 8 }).slice.grantedSms).toBe(8)
  })
})

describe('an enforcer', () => {
  function recorder(grant: (sms: number) => number = (sms) => sms) {
    const live = new Map<string, Layout>()
    let builds = 0
    const enforcer: Enforcer = {
      name: 'recorder',
      prepare(layout) {
        builds++
        live.set(layout.key, layout)
        return layout.slices.map(({ sms }) => ({ enforcement: 'advisory', grantedSms: grant(sms), reason: 'a test' }))
      },
      release({ key }) {
        if (!live.delete(key)) throw new Error(`released twice: ${key}`)
      },
    }
    return { enforcer, live, builds: () => builds }
  }
  test('is asked once for each layout, says what is granted, and gets all of them back', () => {
    const { enforcer, live, builds } = recorder()
    const manager = make({ enforcer })
    manager.update(profile(skewed))
    const built = builds()
    manager.update(profile(skewed, 65))
    expect(builds()).toBe(built)
    expect(manager.plan.slices[0]).toMatchObject({ enforcement: 'advisory', enforcementReason: 'a test' })
    manager.dispose()
    expect(live.size).toBe(0)
    manager.dispose()
    expect(() => manager.update(profile(skewed))).toThrow(/disposed/)
  })
  test('has layouts built ahead, so that one portion more or less is a switch', () => {
    const { enforcer, live, builds } = recorder()
    const manager = make({ enforcer, policy: policies.dynamic(), dwellSteps: 0 })
    manager.update(profile(skewed))
    expect(manager.buildAhead()[0]?.key).toBe(manager.plan.key)
    const built = builds()
    const plan = manager.update(profile(skewed, 65), { utilization: [1, 0.5, 0.4] })
    expect(manager.stats().switches).toBeGreaterThan(0)
    expect(live.has(plan.key)).toBe(true)
    expect(builds()).toBe(built)
  })
  test('keeps at most so many layouts, and the one in use among them', () => {
    const { enforcer, live } = recorder()
    const manager = make({ enforcer, maxLayouts: 2 })
    manager.update(profile(skewed))
    manager.buildAhead()
    expect(live.size).toBe(2)
    expect(live.has(manager.plan.key)).toBe(true)
  })
  test('that grants other than was asked is reported, and more than there is refused', () => {
    const less = make({ enforcer: recorder((sms) => sms - 4).enforcer })
    const [hot] = less.plan.slices
    expect(hot?.grantedSms).toBe((hot?.requestedSms ?? 0) - 4)
    const { enforcer, live } = recorder((sms) => sms + 8)
    expect(() => make({ enforcer })).toThrow(/enforcer 'recorder': expected \d slices of at most 132 SMs together/)
    expect(live.size).toBe(0)
  })
  test('that cannot build a layout leaves the plan as it was', () => {
    let fail = false
    const { enforcer } = recorder()
    const brittle: Enforcer = {
      ...enforcer,
      prepare(layout) {
        if (fail) throw new Error('out of contexts')
        return enforcer.prepare(layout)
      },
    }
    const manager = make({ enforcer: brittle })
    const before = manager.plan
    fail = true
    expect(() => manager.allocate({ name: 'aux', sms: 8 })).toThrow(/could not build .*out of contexts/)
    expect(manager.plan).toBe(before)
  })
})

test('hundreds of changes in a row: every plan is sound, and what failed changed nothing', () => {
  const change = fc.oneof(
    fc.record({
      act: fc.constant('allocate'),
      slice: fc.nat(4),
      sms: fc.integer({ min: 1, max: 90 }),
      more: fc.nat(5),
    }),
    fc.record({ act: fc.constant('resize'), slice: fc.nat(4), sms: fc.integer({ min: 1, max: 140 }), more: fc.nat(5) }),
    fc.record({ act: fc.constant('release'), slice: fc.nat(4), sms: fc.constant(1), more: fc.nat(5) }),
    fc.record({ act: fc.constant('migrate'), slice: fc.nat(6), sms: fc.nat(numExperts - 1), more: fc.nat(5) }),
    fc.record({ act: fc.constant('update'), slice: fc.nat(4), sms: fc.nat(50), more: fc.nat(5) }),
  )
  fc.assert(
    fc.property(
      fc.array(change, { minLength: 200, maxLength: 400 }),
      fc.constantFrom(...Object.values(policies)),
      fc.constantFrom(8, 4, 2),
      (changes, policy, granularity) => {
        const device = { ...h200, granularity, minSms: 8 }
        const manager = make({ device, policy: policy() })
        const profiler = new ExpertProfiler({ numExperts, windowSteps: 4 })
        for (const { act, slice, sms, more } of changes) {
          const before = manager.plan
          const name = `slice-${slice}`
          try {
            if (act === 'allocate') {
              manager.allocate({ name, sms, priority: more, evict: more > 2, l2Share: more / 8 })
            } else if (act === 'resize') manager.resize(name, sms)
            else if (act === 'release') manager.release(name)
            else if (act === 'migrate') manager.migrate(sms, slice > 4 ? null : name)
            else {
              profiler.record({ counts: skewed.map((n, e) => Math.floor((n * ((e * 7 + sms) % 13)) / 6)) })
              manager.update(profiler.snapshot())
            }
          } catch (error) {
            if (!(error instanceof SliceAllocationError) && !(error instanceof RangeError)) throw error
            expect(manager.plan).toBe(before)
          }
        }
        sound(manager.plan, device)
        for (const plan of [manager.plan, manager.update(profile(skewed))]) sound(plan, device)
      },
    ),
    { numRuns: 25 },
  )
})

describe('a reserved slice that goes back to a size that it had', () => {
  const counting = () => {
    const adaptive = policies.adaptive()
    const asked = { times: 0 }
    const policy: AllocationPolicy = {
      name: 'counting',
      decide(snapshot) {
        asked.times++
        return adaptive.decide(snapshot)
      },
    }
    return { asked, policy }
  }

  test('has the plan that it had, and the policy is asked again only when there is something new', () => {
    const { asked, policy } = counting()
    const manager = make({ policy, dwellSteps: 0 })
    manager.update(profile(skewed))
    manager.allocate({ name: 'aux', sms: 8 })
    const sizes = [16, 8, 16, 8, 16, 8]
    const plans = sizes.map((sms) => {
      manager.resize('aux', sms)
      return manager.plan
    })
    const settled = asked.times
    const again = sizes.map((sms) => {
      manager.resize('aux', sms)
      return manager.plan
    })
    expect(asked.times).toBe(settled)
    expect(again.slice(0, 2)).toEqual(plans.slice(4))
    for (const plan of again) sound(plan, h200)
    expect(manager.stats()).toMatchObject({ plans: 15, switches: 14 })
    manager.update(profile([...skewed].reverse()))
    expect(asked.times).toBe(settled + 1)
    manager.resize('aux', 16)
    expect(asked.times).toBe(settled + 2)
    expect(manager.plan.sliceOf).not.toEqual(again[0]?.sliceOf)
  })
  test('has budgets as they are held now, when its layout was given back meanwhile and built anew', () => {
    let builds = 0
    const enforcer: Enforcer = {
      name: 'numbered',
      prepare: ({ slices }) => {
        builds++
        return slices.map(({ sms }) => ({ enforcement: 'hardware', grantedSms: sms, reason: `build ${builds}` }))
      },
      release() {},
    }
    const manager = make({ enforcer, maxLayouts: 1, dwellSteps: 0 })
    manager.allocate({ name: 'aux', sms: 8 })
    for (const sms of [16, 8, 16, 8, 16, 8]) {
      const before = builds
      expect(manager.resize('aux', sms).enforcementReason).toBe(`build ${before + 1}`)
    }
  })
})
