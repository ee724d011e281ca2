import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  arrange,
  type CostModel,
  type DeviceDescription,
  expertBytes,
  expertFlops,
  gatedExpertCost,
  h200,
  interpolate,
  predictEnergy,
  predictExpertUs,
  predictStep,
  SliceManager,
  saturatingSms,
  smsForBandwidth,
} from '../src/index.js'

const cost = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })

describe('curves', () => {
  test('pass through what was measured, lines between, a line from 0, and then flat', () => {
    for (const { sms, perSecond } of h200.bandwidth) expect(interpolate(h200.bandwidth, sms)).toBe(perSecond)
    expect(interpolate(h200.bandwidth, 4)).toBeCloseTo(0.635e12, -3)
    expect(interpolate(h200.bandwidth, 32)).toBeCloseTo((3.74e12 + 4.21e12) / 2, -3)
    expect(interpolate(h200.bandwidth, 200)).toBe(4.65e12)
    expect(interpolate(h200.rate, 66)).toBe(395e12)
  })
  test('never fall', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 200, noNaN: true }),
        fc.double({ min: 0, max: 200, noNaN: true }),
        (a, b) => {
          const [low, high] = [Math.min(a, b), Math.max(a, b)]
          expect(interpolate(h200.bandwidth, low)).toBeLessThanOrEqual(interpolate(h200.bandwidth, high))
        },
      ),
    )
  })
})

describe('a bandwidth cap in SMs', () => {
  test('is the most that stay within it', () => {
    expect(smsForBandwidth(h200, 1.27e12)).toBe(8)
    expect(smsForBandwidth(h200, 2.6e12)).toBe(16)
    expect(smsForBandwidth(h200, 4.3e12)).toBe(40)
  })
  test('is the smallest slice below what that one reads, and saturation above what the memory has', () => {
    expect(smsForBandwidth(h200, 0)).toBe(8)
    expect(saturatingSms(h200)).toBe(48)
    expect(smsForBandwidth(h200, 9e12)).toBe(48)
  })
})

describe('the time of an expert', () => {
  test('is that of its bytes while it has few tokens, of its arithmetic when it has many', () => {
    const weights = 3 * 2048 * 768
    expect(predictExpertUs(cost, 1, 132)).toBeCloseTo((2 * (weights + 2 * 2048) * 1e6) / 4.65e12 + 0.5, 9)
    expect(predictExpertUs(cost, 4096, 66)).toBeCloseTo((2 * weights * 4096 * 1e6) / 395e12 + 0.5, 9)
    expect(predictExpertUs(cost, 0, 132)).toBe(0)
  })
  test('a memory-bound one keeps its speed on 48 SMs, a compute-bound one does not', () => {
    expect(predictExpertUs(cost, 8, 48) / predictExpertUs(cost, 8, 132)).toBeLessThan(1.01)
    expect(predictExpertUs(cost, 8192, 48) / predictExpertUs(cost, 8192, 132)).toBeGreaterThan(2.7)
  })
  test('falls with SMs, rises with assignments', () => {
    const some = fc.double({ min: 0.01, max: 1e5, noNaN: true })
    fc.assert(
      fc.property(some, some, fc.integer({ min: 1, max: 131 }), (a, b, n) => {
        const [few, many] = [Math.min(a, b), Math.max(a, b)]
        expect(predictExpertUs(cost, many, n + 1)).toBeLessThanOrEqual(predictExpertUs(cost, many, n))
        expect(predictExpertUs(cost, few, n)).toBeLessThanOrEqual(predictExpertUs(cost, many, n))
      }),
    )
  })
})

describe('the time of a step', () => {
  test('is its slowest slice, each the sum of its experts', () => {
    const load = [3000, 100, 7, 0]
    const { stepUs, sliceUs } = predictStep(cost, load, { sms: [100, 32], sliceOf: [0, 0, 1, 1] })
    expect(sliceUs[0]).toBeCloseTo(predictExpertUs(cost, 3000, 100) + predictExpertUs(cost, 100, 100), 9)
    expect(sliceUs[1]).toBeCloseTo(predictExpertUs(cost, 7, 32), 9)
    expect(stepUs).toBe(Math.max(...sliceUs))
  })
  test('is not shorter than the memory needs for all of it', () => {
    const load = new Array<number>(64).fill(1)
    const { stepUs, sliceUs } = predictStep(cost, load, { sms: [66, 66], sliceOf: load.map((_, e) => e % 2) })
    expect(Math.max(...sliceUs)).toBeLessThan(stepUs)
    expect(stepUs).toBeCloseTo((64 * expertBytes(cost, 1) * 1e6) / 4.65e12, 6)
  })
})

describe('what real kernels add', () => {
  const load = [3000, 100, 7, 0]
  const placement = { sms: [100, 32], sliceOf: [0, 0, 1, 1] }
  const slices = (change: Partial<CostModel>) => predictStep({ ...cost, ...change }, load, placement).sliceUs
  test('experts of a slice beside each other take the longer of all bytes and all operations', () => {
    const bytes = expertBytes(cost, 3000) + expertBytes(cost, 100)
    const flops = cost.assignmentFlop * 3100
    const memory = (bytes * 1e6) / interpolate(h200.bandwidth, 100)
    const arithmetic = (flops * 1e6) / interpolate(h200.rate, 100)
    expect(slices({ overlap: 'slice' })[0]).toBeCloseTo(Math.max(memory, arithmetic) + 2 * 0.5, 9)
    expect(slices({ overlap: 'slice', exposed: 0.25 })[0]).toBeCloseTo(arithmetic + 0.25 * memory + 2 * 0.5, 9)
    // One expert alone has nobody to overlap with.
    expect(slices({ overlap: 'slice' })[1]).toBe(slices({})[1])
    expect(slices({ overlap: 'slice' })[0]).toBeLessThan(slices({})[0] ?? 0)
  })
  test('rows are computed in whole tiles, and an expert costs some rows besides', () => {
    const tiled = { ...cost, rowTile: 8, extraRows: 3 }
    expect(expertFlops(tiled, 0)).toBe(0)
    expect(expertFlops(tiled, 1)).toBe(11 * cost.assignmentFlop)
    expect(expertFlops(tiled, 16)).toBe(19 * cost.assignmentFlop)
    expect(expertFlops(tiled, 17)).toBe(27 * cost.assignmentFlop)
    // An expected count below one is the probability of a row.
    expect(expertFlops(tiled, 0.5)).toBe(5.5 * cost.assignmentFlop)
    const wide = { ...tiled, rowTile: 128 }
    expect(predictExpertUs(wide, 4097, 66)).toBe(predictExpertUs(wide, 4224, 66))
  })
  test('a step has a price of its own, each further slice and each assignment as well', () => {
    const bare = predictStep(cost, load, placement)
    const priced = predictStep({ ...cost, stepUs: 9, perSliceUs: 2, perAssignmentUs: 1e-3 }, load, placement)
    expect(priced.stepUs).toBeCloseTo(bare.stepUs + 9 + 2 + 3.107, 9)
    expect(priced.sliceUs).toEqual(bare.sliceUs)
  })
  test.each([
    ['none', 0],
    ['none', 0.4],
    ['slice', 0],
    ['slice', 0.4],
  ] as const)('arrangements are made for it: overlap %s, exposed %f', (overlap, exposed) => {
    const model = { ...cost, overlap, exposed, rowTile: 8, extraRows: 4 }
    const limits = { sms: 132, granularity: 8, minSms: 8, slices: 2, dwellSteps: 8, switchUs: 3 }
    fc.assert(
      fc.property(fc.array(fc.oneof(fc.nat(20), fc.nat(4000)), { minLength: 2, maxLength: 10 }), (counts) => {
        fc.pre(counts.some((n) => n > 0))
        const order = counts.map((_, e) => e).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b)
        let best = Number.POSITIVE_INFINITY
        for (let cut = 1; cut < counts.length; cut++) {
          const sliceOf = new Array<number>(counts.length).fill(1)
          for (const e of order.slice(0, cut)) sliceOf[e] = 0
          for (let first = 8; first <= 124; first += 8) {
            for (const sms of [first, first + 4].filter((n) => n <= 124 && (n % 8 === 0 || (132 - n) % 8 === 0))) {
              best = Math.min(best, predictStep(model, counts, { sms: [sms, 132 - sms], sliceOf }).stepUs)
            }
          }
        }
        const ours = arrange(counts, limits, model).predictedUs
        expect(ours).toBeGreaterThanOrEqual(best * (1 - 1e-9))
        expect(ours).toBeLessThan(best * 1.5)
      }),
      { seed: 3, numRuns: 60 },
    )
  })
})

describe('the energy of a step', () => {
  const power = { idleWatts: 100, joulesPerByte: 1e-10, joulesPerFlop: 1e-12, smWatts: 2 }
  const load = [3000, 7]
  test('is the idle power over the step, busy SMs, bytes and operations', () => {
    const placement = { sms: [100, 32], sliceOf: [0, 1] }
    const { stepUs, sliceUs } = predictStep(cost, load, placement)
    const bytes = expertBytes(cost, 3000) + expertBytes(cost, 7)
    const busy = (100 * (sliceUs[0] ?? 0) + 32 * (sliceUs[1] ?? 0)) * 1e-6
    expect(predictEnergy(cost, power, load, placement)).toEqual({
      stepUs,
      joules: expect.closeTo(100 * stepUs * 1e-6 + 2 * busy + 1e-10 * bytes + 1e-12 * 3007 * cost.assignmentFlop, 12),
    })
  })
  test('of memory-bound work falls with fewer SMs, of compute-bound work hardly changes', () => {
    const ratio = (n: number) => {
      const on = (sms: number) =>
        predictEnergy(cost, { ...power, idleWatts: 0 }, [n], { sms: [sms], sliceOf: [0] }).joules
      return on(48) / on(132)
    }
    expect(ratio(8)).toBeLessThan(0.8)
    expect(ratio(8192)).toBeGreaterThan(0.99)
  })
})

test('a device that makes no sense is refused by field', () => {
  const make = (change: Partial<DeviceDescription>) => () =>
    new SliceManager({ device: { ...h200, ...change }, numExperts: 1 })
  expect(make({ sms: 0 })).toThrow(/options\.device\.sms: expected an integer from 1/)
  expect(make({ minSms: 132, granularity: 8 })).toThrow(/options\.device\.minSms: expected to fit into 132 SMs/)
  expect(make({ bandwidth: [] })).toThrow(/options\.device\.bandwidth: expected an array of at least one point/)
  expect(
    make({
      rate: [
        { sms: 8, perSecond: 2 },
        { sms: 8, perSecond: 3 },
      ],
    }),
  ).toThrow(/options\.device\.rate\[1\]\.sms: expected more than 8, got 8/)
  expect(make({ rate: [{ sms: 8, perSecond: 0 }] })).toThrow(/options\.device\.rate\[0\]\.perSecond/)
})
