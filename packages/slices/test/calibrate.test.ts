// Measured step times to a cost model and back, on devices whose parameters are known, and on one that is of another kind.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { h200 } from '../src/index.js'
import { leastSquares } from '../src/simulator/least-squares.js'
import {
  agreement,
  calibrate,
  checkMeasurements,
  crossValidate,
  rowsOf,
  type StepMeasurement,
  type StepMeasurements,
} from '../src/simulator.js'
import { byModel, byTiles, known, measured, qwen } from './support/measured.js'

describe('calibration', () => {
  test('recovers the parameters of a device of its form, exactly without noise', () => {
    const { cost, parameters, agreement: found } = calibrate(measured(qwen, 1, 0, byModel(known)))
    expect(found.maxError).toBeLessThan(0.002)
    expect(cost).toMatchObject({ overlap: 'slice', rowTile: 8, weightBytes: known.weightBytes })
    const off = (value: number, truth: number) => Math.abs(value / truth - 1)
    expect(off(parameters.bandwidthScale, 0.88)).toBeLessThan(0.01)
    expect(off(parameters.bandwidthSms, 1.15)).toBeLessThan(0.02)
    expect(off(parameters.rateScale, 520 / 790)).toBeLessThan(0.02)
    expect(off(parameters.stepUs, 9)).toBeLessThan(0.05)
    expect(off(parameters.perSliceUs, 2.5)).toBeLessThan(0.1)
    expect(off(parameters.exposed, 0.3)).toBeLessThan(0.1)
    expect(off(parameters.overheadUs, 0.05)).toBeLessThan(0.3)
  }, 60_000)
  test('with 2 % of noise still says steps that it has not seen within 10 %', () => {
    const { cost } = calibrate(measured(qwen, 1, 0.02, byModel(known)))
    const held = agreement(measured(qwen, 2, 0, byModel(known)).rows, cost)
    expect(held.rows.length).toBeGreaterThan(50)
    expect(held.maxError).toBeLessThan(0.1)
    expect(held.meanError).toBeLessThan(0.02)
  }, 60_000)
  test('finds that the experts of a slice run one after the other, where they do', () => {
    const serial = { ...known, overlap: 'none' as const, overheadUs: 0.8 }
    const found = calibrate(measured(qwen, 3, 0.01, byModel(serial)))
    expect(found.cost.overlap).toBe('none')
    expect(found.agreement.maxError).toBeLessThan(0.05)
  }, 60_000)
  test('describes a device of another kind (tiles handed out to SMs) to a few percent in the mean, unseen rows as well', () => {
    const rows = measured(qwen, 1, 0.01, byTiles)
    const { agreement: fitted } = calibrate(rows)
    expect(fitted.meanError).toBeLessThan(0.05)
    const held = crossValidate(rows)
    expect(held.rows.map(({ row }) => row)).toEqual(rows.rows)
    expect(held.meanError).toBeLessThan(0.06)
    // The device is no H200 by data sheet: uncalibrated, the model is off by far more.
    expect(agreement(rows.rows, { ...known, stepUs: 0 }).meanError).toBeGreaterThan(2 * held.meanError)
  }, 60_000)
  test('is the same every time', () => {
    const rows = measured(qwen, 4, 0.03, byModel(known))
    expect(calibrate(rows)).toEqual(calibrate(rows))
  }, 60_000)
  test('takes one of several shapes by name, and refuses to guess', () => {
    const one = measured(qwen, 1, 0, byModel(known))
    const small = { ...qwen, name: 'other', numExperts: 2, topK: 1 }
    const row = {
      ...row0(one),
      shape: 'other',
      counts: [1, 0],
      tokens: 1,
      sms: [132],
      sliceOf: null,
      strategy: 'fused' as const,
    }
    const both: StepMeasurements = { ...one, shapes: [...one.shapes, small], rows: [...one.rows, row] }
    expect(() => calibrate(both)).toThrow(/options\.shape: expected the name of one of 2 shapes/)
    expect(rowsOf(both, 'other').rows).toEqual([row])
    expect(calibrate(both, { shape: 'other' }).shape).toBe('other')
    expect(() => calibrate(both, { shape: 'none' })).toThrow(/shape: expected one of qwen3-30b-a3b, other, got 'none'/)
    expect(() => calibrate({ ...one, rows: [] })).toThrow(/measurements\.rows: expected at least 1/)
    expect(() => calibrate(one, { device: { ...h200, sms: 128 } })).toThrow(/expected one of 132 SMs/)
    expect(() => crossValidate(one, { folds: 1 })).toThrow(/options\.folds/)
  }, 60_000)
})

describe('agreement', () => {
  test('is predicted over measured, row by row, with the largest error', () => {
    const { rows } = measured(qwen, 1, 0, byModel(known))
    const slower = rows.map((row, i) => ({ ...row, us: row.us * (i === 3 ? 0.8 : i === 5 ? 1.1 : 1) }))
    const found = agreement(slower, known)
    expect(found.maxError).toBeCloseTo(0.25, 9)
    expect(found.rows[5]?.error).toBeCloseTo(1 / 1.1 - 1, 9)
    expect(found.medianError).toBeCloseTo(0, 9)
    expect(found.bias).toBeCloseTo((0.25 + 1 / 1.1 - 1) / rows.length, 9)
    expect(agreement([], known)).toMatchObject({ maxError: 0, meanError: 0, rows: [] })
  })
})

describe('measurements from a file', () => {
  const good = measured(qwen, 1, 0, byModel(known))
  test('are what JSON gives back', () => {
    expect(checkMeasurements(JSON.parse(JSON.stringify(good)))).toEqual(good)
  })
  test('are refused by field', () => {
    const bad = (change: object) => () => checkMeasurements({ ...good, ...change })
    const badRow = (change: object) => bad({ rows: [{ ...row0(good), ...change }] })
    expect(bad({ format: 'x' })).toThrow(/measurements\.format: expected one of 'nexus-step-measurements\/1', got 'x'/)
    expect(bad({ extra: 1 })).toThrow(/unknown option 'extra'/)
    expect(bad({ scope: 'all' })).toThrow(/measurements\.scope/)
    expect(bad({ shapes: [qwen, qwen] })).toThrow(/shapes\[1\]\.name: 'qwen3-30b-a3b' is there twice/)
    expect(badRow({ shape: 'other' })).toThrow(/rows\[0\]\.shape: expected one of qwen3-30b-a3b, got 'other'/)
    expect(badRow({ us: 0 })).toThrow(/rows\[0\]\.us: expected more than 0/)
    expect(badRow({ counts: [1] })).toThrow(/rows\[0\]\.counts: expected 128 counts with a sum of 8 .*got 1 with 1/)
    expect(badRow({ sms: [100, 40] })).toThrow(/rows\[0\]\.sms: expected 1 to 132 SMs in all/)
    expect(badRow({ strategy: 'fused', sms: [66, 66] })).toThrow(/expected one slice with 'fused', got 2/)
    expect(badRow({ strategy: 'tiered', sms: [66, 66], sliceOf: null })).toThrow(
      /rows\[0\]\.sliceOf: expected an array/,
    )
    expect(badRow({ interval: [3, 2] })).toThrow(/rows\[0\]\.interval\[1\]/)
    expect(badRow({ strategy: 'streams' })).toThrow(/rows\[0\]\.strategy/)
    expect(() => checkMeasurements(null)).toThrow(/measurements: expected an object, got null/)
  })
})

describe('least squares', () => {
  test('solves linear problems in the box, and stops at its walls', () => {
    const unit = fc.double({ min: 0.05, max: 0.95, noNaN: true })
    fc.assert(
      fc.property(unit, unit, (a, b) => {
        const residuals = (x: readonly number[]) =>
          Float64Array.of((x[0] ?? 0) - a, 2 * ((x[1] ?? 0) - b), (x[0] ?? 0) + (x[1] ?? 0) - a - b)
        const { x } = leastSquares(residuals, [0.5, 0.5], 50)
        expect(x[0]).toBeCloseTo(a, 4)
        expect(x[1]).toBeCloseTo(b, 4)
        const outside = leastSquares((y) => Float64Array.of((y[0] ?? 0) - 2, (y[1] ?? 0) - a), [0.5, 0.5], 50)
        expect(outside.x[0]).toBe(1)
        expect(outside.x[1]).toBeCloseTo(a, 4)
      }),
    )
  })
  test('finds the valley of a curved one', () => {
    const rosenbrock = (x: readonly number[]) => {
      const [a, b] = [4 * (x[0] ?? 0) - 2, 4 * (x[1] ?? 0) - 2]
      return Float64Array.of(1 - a, 10 * (b - a * a))
    }
    const { x, loss } = leastSquares(rosenbrock, [0.2, 0.7], 200)
    expect(loss).toBeLessThan(1e-8)
    expect(x[0]).toBeCloseTo(0.75, 3)
  })
})

function row0(file: StepMeasurements): StepMeasurement {
  const [row] = file.rows
  if (!row) throw new Error('no row')
  return row
}
