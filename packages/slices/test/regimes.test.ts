// The measured steps of an H200, replayed: what is predicted of those that the fit has not seen, and by the simulator.
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type CostModel, h200, predictStep } from '../src/index.js'
import {
  agreement,
  calibrateRegimes,
  calibrateTiles,
  checkMeasurements,
  costFor,
  predictRow,
  predictTiles,
  type StepMeasurement,
  simulate,
  type TileModel,
  tilesFor,
} from '../src/simulator.js'
import { byModel, known, measured, qwen } from './support/measured.js'

const path = new URL('../../../apps/bench/results/h200-calibration.json', import.meta.url)
const { measurements, fits } = JSON.parse(readFileSync(path, 'utf8'))
const file = checkMeasurements(measurements)
const placed = ({ sms, sliceOf, counts }: StepMeasurement) => ({
  sms,
  sliceOf: sliceOf ?? new Array<number>(counts.length).fill(0),
})

const ofTwo = ({ strategy, sms }: StepMeasurement) => strategy === 'tiered' && sms.length === 2
/** The middle one of the layouts of two slices, which is left out of the fits with all its loads. */
const layouts = [...new Set(file.rows.filter(ofTwo).map(({ sms }) => sms[0] ?? 0))]
const middle = layouts.sort((a, b) => a - b)[layouts.length >> 1]
const held = (row: StepMeasurement) => ofTwo(row) && row.sms[0] === middle

describe('regimes of the measured H200', () => {
  const stated = (shape: string) => fits.find((fit: { shape: string }) => fit.shape === shape)
  const mean = (errors: readonly number[]) => errors.reduce((a, b) => a + b, 0) / errors.length
  for (const { name } of file.shapes) {
    const own = file.rows.filter((row) => row.shape === name)
    const seen = { ...file, rows: own.filter((row) => !held(row)) }
    const unseen = own.filter(held)
    test(`${name}: a layout that no fit has seen is about as far off as the result file states of single steps`, () => {
      expect(unseen.length).toBeGreaterThanOrEqual(10)
      const tiles = calibrateTiles(seen, { shape: name, heldOut: false })
      const cost = calibrateRegimes(seen, { shape: name, heldOut: false })
      expect(tiles.heldOut.rows).toEqual([])
      expect(cost.heldOut.rows).toEqual([])
      expect(tiles.regimes.map(({ tokens }) => tokens)).toEqual([8, 64, 256, 1024, 4096])
      const off = {
        tiles: unseen.map((row) => {
          const model = tilesFor(tiles.regimes, row.tokens * 8)
          return Math.abs(predictTiles(model, row.counts, placed(row)).stepUs / row.us - 1)
        }),
        cost: unseen.map((row) => agreement([row], costFor(cost.regimes, row.tokens * 8)).maxError),
      }
      for (const model of ['tiles', 'cost'] as const) {
        expect(Math.max(...off[model]), model).toBeLessThan(1.5 * stated(name)[model].heldOut.maxError)
        expect(mean(off[model]), model).toBeLessThan(0.08)
      }
    }, 60_000)
  }
  test('the simulator takes the regime of each step, for its decisions and for its clock', () => {
    const [shape] = file.shapes
    if (!shape) throw new Error('no shape')
    const tiles = calibrateTiles(file, { shape: shape.name, heldOut: false })
    const { regimes } = calibrateRegimes(file, { shape: shape.name, heldOut: false })
    const whole = file.rows.filter((row) => row.shape === shape.name && row.sms[0] === 132)
    const costs: number[] = []
    const run = (clock?: (assignments: number) => TileModel) =>
      simulate(
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
          ...(clock && { clock }),
        },
      ).makespanUs
    const sum = (us: readonly number[]) => us.reduce((a, b) => a + b, 0)
    expect(run()).toBeCloseTo(sum(whole.map((row) => predictRow(costFor(regimes, row.tokens * shape.topK), row))), 6)
    for (const { tokens } of whole) expect(costs).toContain(tokens * shape.topK)
    const clock = (assignments: number) => tilesFor(tiles.regimes, assignments)
    const timed = whole.map((row) => predictTiles(clock(row.tokens * shape.topK), row.counts, placed(row)).stepUs)
    expect(run(clock)).toBeCloseTo(sum(timed), 6)
    const errors = whole.map((row, i) => Math.abs((timed[i] ?? 0) / row.us - 1))
    expect(mean(errors)).toBeLessThan(0.05)
  }, 60_000)
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
