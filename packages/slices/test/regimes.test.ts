// The measured steps of an H200, replayed: what is predicted of those that the fit has not seen, and by the simulator.
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type CostModel, h200, predictStep } from '../src/index.js'
import {
  agreement,
  calibrateRegimes,
  checkMeasurements,
  costFor,
  predictRow,
  type StepMeasurement,
  simulate,
} from '../src/simulator.js'
import { byModel, known, measured, qwen } from './support/measured.js'

const path = new URL('../../../apps/bench/results/h200-calibration.json', import.meta.url)
const { measurements, fits } = JSON.parse(readFileSync(path, 'utf8'))
const file = checkMeasurements(measurements)

/** Whether every row of a shape is left out: one of seven layouts, with even and skewed load. */
const held = (row: StepMeasurement) => row.strategy === 'tiered' && row.sms[0] === 64

describe('regimes of the measured H200', () => {
  for (const { name } of file.shapes) {
    const own = file.rows.filter((row) => row.shape === name)
    test(`${name}: a layout that the fit has not seen is within what the result file states`, () => {
      const rows = own.filter((row) => !held(row))
      const {
        regimes,
        heldOut,
        agreement: fitted,
      } = calibrateRegimes({ ...file, rows }, { shape: name, heldOut: false })
      expect(regimes.map(({ tokens }) => tokens)).toEqual([8, 64, 256, 1024, 4096])
      expect(heldOut.rows).toEqual([])
      expect(fitted.maxError).toBeLessThan(0.1)
      const stated = fits.find((fit: { shape: string }) => fit.shape === name)
      const unseen = own.filter(held).map((row) => {
        const cost = costFor(regimes, row.tokens * 8)
        return agreement([row], cost).maxError
      })
      expect(unseen).toHaveLength(10)
      expect(Math.max(...unseen)).toBeLessThan(stated.heldOut.maxError)
      expect(unseen.reduce((a, b) => a + b, 0) / 10).toBeLessThan(0.08)
    }, 20_000)
  }
  test('the simulator takes the regime of each step', () => {
    const [shape] = file.shapes
    if (!shape) throw new Error('no shape')
    const { regimes } = calibrateRegimes(file, { shape: shape.name, heldOut: false })
    const whole = file.rows.filter((row) => row.shape === shape.name && row.sms[0] === 132)
    const costs: number[] = []
    const result = simulate(
      {
        name: 'whole',
        decide: () => ({ sms: [132], sliceOf: new Array<number>(shape.numExperts).fill(0), reason: 'all of it' }),
      },
      { name: 'measured', numExperts: shape.numExperts, counts: whole.map(({ counts }) => Int32Array.from(counts)) },
      {
        warmupSteps: 0,
        oracle: false,
        cost: (assignments) => {
          costs.push(assignments)
          return costFor(regimes, assignments)
        },
      },
    )
    for (const { tokens } of whole) expect(costs).toContain(tokens * shape.topK)
    const predicted = whole.map((row) => predictRow(costFor(regimes, row.tokens * shape.topK), row))
    expect(result.makespanUs).toBeCloseTo(
      predicted.reduce((a, b) => a + b),
      6,
    )
    for (const [i, us] of predicted.entries()) expect(Math.abs(us / (whole[i]?.us ?? 0) - 1)).toBeLessThan(0.1)
  }, 20_000)
})

test('the nearest regime by ratio is taken', () => {
  const regimes = [64, 4096].map((assignments) => ({ assignments, cost: { ...known, stepUs: assignments } }))
  expect([0, 1, 500, 520, 1e6].map((a) => costFor(regimes, a).stepUs)).toEqual([64, 64, 64, 4096, 4096])
  expect(() => costFor([], 8)).toThrow(/regimes\.length/)
  expect(() => costFor(regimes, -1)).toThrow(/assignments/)
})

test('each row is held out once, in its place', () => {
  const all = measured(qwen, 1, 0.01, byModel(known))
  const rows = all.rows.filter((row) => row.tokens === all.rows[0]?.tokens)
  const { heldOut, regimes } = calibrateRegimes({ ...all, rows })
  expect(heldOut.rows.map(({ row }) => row)).toEqual(rows)
  expect(regimes[0]?.heldOut?.maxError).toBe(heldOut.maxError)
}, 20_000)

describe('terms of several slices', () => {
  const cost: CostModel = { ...known, overlap: 'slice', exposed: 0, stepUs: 0, perSliceUs: 0 }
  const load = [3, 1, 2, 0]
  const two = { sms: [64, 68], sliceOf: [0, 1, 1, 1] }
  test('contention slows what they read; one slice has none', () => {
    const { rate: _, ...rest } = cost
    const memory = { ...rest, rate: [{ sms: 132, perSecond: 1e30 }], overheadUs: 0 }
    const free = predictStep(memory, load, two).sliceUs
    const contended = predictStep({ ...memory, contention: 1 }, load, two).sliceUs
    const ratio = (contended[0] ?? 0) / (free[0] ?? 1)
    expect(ratio).toBeGreaterThan(1.5)
    expect((contended[1] ?? 0) / (free[1] ?? 1)).toBeCloseTo(ratio, 9)
    const one = { sms: [h200.sms], sliceOf: [0, 0, 0, 0] }
    expect(predictStep({ ...memory, contention: 1, walkUs: 9 }, load, one)).toEqual(predictStep(memory, load, one))
  })
  test('walking costs every slice that has work the experts of all', () => {
    const plain = predictStep(cost, load, two).sliceUs
    const walked = predictStep({ ...cost, walkUs: 10 }, load, two).sliceUs
    expect((walked[0] ?? 0) - (plain[0] ?? 0)).toBeCloseTo((3 * 10) / 64, 9)
    expect((walked[1] ?? 0) - (plain[1] ?? 0)).toBeCloseTo((3 * 10) / 68, 9)
    expect(predictStep({ ...cost, walkUs: 10 }, [1, 0, 0, 0], two).sliceUs[1]).toBe(0)
  })
})
