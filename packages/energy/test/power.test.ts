// Prices of a device, from what its work took.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { fitPower, modelledEnergy, type PowerModel, type PowerObservation, powerModels } from '../src/index.js'

/** Idle, reading, computing and both, on some or all of 132 SMs, for 2 to 6 s. */
const kinds = [
  { bytes: 0, flops: 0, sms: 0 },
  { bytes: 4.6e12, flops: 1e12, sms: 132 },
  { bytes: 4.5e12, flops: 0, sms: 48 },
  { bytes: 2e11, flops: 5.5e14, sms: 132 },
  { bytes: 1e11, flops: 2.6e14, sms: 64 },
  { bytes: 2.2e12, flops: 3e14, sms: 132 },
]
function observe(model: PowerModel, noise: (i: number) => number, withSms: boolean): PowerObservation[] {
  return kinds.map(({ bytes, flops, sms }, i) => {
    const seconds = 2 + (i % 5)
    const work = { seconds, bytes: bytes * seconds, flops: flops * seconds }
    const all = withSms ? { ...work, smSeconds: sms * seconds } : work
    return { ...all, joules: modelledEnergy(model, all) * noise(i) }
  })
}
const price = (low: number, high: number) => fc.double({ min: low, max: high, noNaN: true })
const prices = fc.record({
  idleWatts: price(20, 200),
  joulesPerByte: price(1e-11, 5e-10),
  joulesPerFlop: price(1e-13, 2e-12),
})

describe('fitPower', () => {
  it('finds the prices again, exactly without noise', () => {
    fc.assert(
      fc.property(prices, fc.option(price(0, 2)), (truth, smWatts) => {
        const model = smWatts === null ? truth : { ...truth, smWatts }
        const fit = fitPower(observe(model, () => 1, smWatts !== null))
        expect(fit.maxError).toBeLessThan(1e-6)
        expect(fit.model.idleWatts).toBeCloseTo(truth.idleWatts, 3)
        expect(fit.model.joulesPerByte / truth.joulesPerByte).toBeCloseTo(1, 5)
        expect(fit.model.joulesPerFlop / truth.joulesPerFlop).toBeCloseTo(1, 5)
        if (smWatts === null) expect(fit.model).not.toHaveProperty('smWatts')
        else expect(fit.model.smWatts).toBeCloseTo(smWatts, 4)
      }),
    )
  })
  it('with noise is near, and says how far the model is from each window', () => {
    const noisy = observe(powerModels.h200, (i) => 1 + 0.02 * (i % 2 === 0 ? 1 : -1), false)
    const { model, errors, maxError } = fitPower(noisy)
    expect(model.joulesPerByte / 1.16e-10).toBeCloseTo(1, 1)
    expect(errors).toHaveLength(kinds.length)
    expect(maxError).toBe(Math.max(...errors.map(Math.abs)))
    expect(maxError).toBeLessThan(0.05)
  })
  it('never has a price below 0', () => {
    fc.assert(
      fc.property(prices, fc.array(price(0.5, 1.5), { minLength: 6, maxLength: 6 }), (truth, noise) => {
        const { model } = fitPower(observe({ ...truth, smWatts: 0.1 }, (i) => noise[i] ?? 1, true))
        for (const value of Object.values(model)) expect(value).toBeGreaterThanOrEqual(0)
      }),
    )
    // One that would have to be negative is 0, and the others still explain what they can.
    const cheaper = observe({ idleWatts: 100, joulesPerByte: 1e-10, joulesPerFlop: -1e-14 }, () => 1, false)
    expect(fitPower(cheaper).model.joulesPerFlop).toBe(0)
  })
  it('takes what is known already as given', () => {
    const [, reading] = observe(powerModels.h200, () => 1, false)
    if (!reading) throw new Error('no observation')
    const { idleWatts, joulesPerFlop } = powerModels.h200
    const { model } = fitPower([reading], { known: { idleWatts, joulesPerFlop } })
    expect(model.joulesPerByte / 1.16e-10).toBeCloseTo(1, 9)
    expect(model).toMatchObject({ idleWatts: 107, joulesPerFlop: 9e-13 })
  })
  it('refuses what cannot be told apart, by name', () => {
    const one = { seconds: 1, bytes: 4e12, flops: 1e12, joules: 500 }
    expect(() => fitPower([one, { ...one, seconds: 2, bytes: 8e12, flops: 2e12, joules: 1000 }])).toThrow(
      /joulesPerByte cannot be told from idleWatts/,
    )
    const still = { seconds: 1, bytes: 0, flops: 0, joules: 100 }
    expect(() => fitPower([still])).toThrow(/none has any bytes, so joulesPerByte cannot be known/)
    expect(() => fitPower([])).toThrow(/observations: expected an array of at least one/)
    expect(() => fitPower([{ ...one, joules: 0 }])).toThrow(/observations\[0\]\.joules/)
    expect(() => fitPower([one, { ...one, smSeconds: 1 }])).toThrow(/observations\[1\]\.smSeconds/)
    expect(() => fitPower([one], { known: { watts: 1 } } as never)).toThrow(/unknown option 'watts'/)
  })
})

describe("an H200's prices", () => {
  it('are what was measured: memory-bound work at 570 to 670 W, 7.0 to 7.4 GB/J', () => {
    const second = { seconds: 1, bytes: 4.65e12, flops: 0 }
    const watts = modelledEnergy(powerModels.h200, second)
    expect(watts).toBeGreaterThan(570)
    expect(watts).toBeLessThan(670)
    expect(4.65e12 / watts / 1e9).toBeGreaterThan(7)
    expect(4.65e12 / watts / 1e9).toBeLessThan(7.4)
  })
})
