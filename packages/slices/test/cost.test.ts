import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  type DeviceDescription,
  expertBytes,
  gatedExpertCost,
  h200,
  interpolate,
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
