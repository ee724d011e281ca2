// The fits of a calibration's result file follow from its measurements, without the device.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { h200 } from '@nexus/slices'
import { expect, test } from 'vitest'
import { resultsFolder } from '../src/paths.js'
import { arrangedOf, arrangements } from '../src/scheduling/arranged.js'
import { type CalibrationResult, meanOf, refit } from '../src/scheduling/calibration.js'
import { clocksOf } from '../src/scheduling/clocks.js'
import { calibrationSection } from '../src/sections/calibration.js'
import { parseShape } from '../src/shapes.js'

const file = JSON.parse(readFileSync(join(resultsFolder, 'h200-calibration.json'), 'utf8')) as CalibrationResult

test('fitted anew, a regime is what the file says, and all else stays as measured', () => {
  const [shape] = file.measurements.shapes
  if (!shape) throw new Error('no shape')
  const rows = file.measurements.rows.filter((row) => row.shape === shape.name && row.tokens === 64)
  const lines: string[] = []
  const part = { ...file, measurements: { ...file.measurements, shapes: [shape], rows }, fits: [] }
  const result = refit(part, h200, (line) => lines.push(line))
  expect(result.environment).toEqual(file.environment)
  for (const model of ['tiles', 'cost'] as const) {
    expect(result.fits[0]?.[model].regimes).toEqual([file.fits[0]?.[model].regimes.find(({ tokens }) => tokens === 64)])
  }
  expect(lines).toHaveLength(1)
}, 60_000)

test("another file's steps: new ones are predicted, the same ones are compared, and what was so before is not kept", () => {
  const [shape] = file.measurements.shapes
  if (!shape) throw new Error('no shape')
  const own = file.measurements.rows.filter((row) => row.shape === shape.name && row.tokens === 8)
  const part = (rows: typeof own) => ({
    ...file,
    measurements: { ...file.measurements, shapes: [shape], rows },
    fits: [],
  })
  const [first, ...rest] = own
  if (!first) throw new Error('no rows')
  // The first is left out of the fit, the last was a tenth slower the second time.
  const again = rest.map((row, i) => (i === rest.length - 1 ? { ...row, us: row.us * 1.1 } : row))
  const result = refit(part(rest), h200, () => {}, part([first, ...again]))
  const [unseen] = result.unseen ?? []
  expect(result.unseen).toHaveLength(1)
  expect(unseen).toMatchObject({ shape: shape.name, tokens: 8, rows: 1, again: rest.length })
  expect(unseen?.worst).toMatchObject({ sms: first.sms, busiest: Math.max(...first.counts) })
  expect(unseen?.off?.maxError).toBeCloseTo(Math.abs(unseen?.worst?.error ?? 0), 12)
  expect(unseen?.off?.maxError).toBeGreaterThan(0)
  expect(unseen?.off?.maxError).toBeLessThan(0.1)
  expect(unseen?.moved?.maxError).toBeCloseTo(0.1, 9)
  const nothingNew = refit(part(rest), h200, () => {}, part(rest)).unseen?.[0]
  expect(nothingNew).toMatchObject({ rows: 0, off: null, worst: null, moved: { maxError: 0 } })
  expect(refit(result, h200, () => {})).not.toHaveProperty('unseen')
  expect(() => refit(part(own), h200, () => {}, { kind: 'skew' })).toThrow(/calibration/)
}, 60_000)

test('what is no calibration is refused', () => {
  expect(() => refit({ kind: 'skew' }, h200, () => {})).toThrow(/expected a result file of kind 'calibration'/)
  expect(() => refit(null, h200, () => {})).toThrow(/expected a result file/)
  expect(() => refit({ ...file, measurements: { ...file.measurements, rows: [{}] } }, h200, () => {})).toThrow(
    /measurements\.rows\[0\]/,
  )
})

test('arrangements of one load are told apart by their order, and compared', () => {
  const clocks = clocksOf(file, ['qwen3-30b-a3b'])
  const [shape, other] = ['qwen3-30b-a3b', 'olmoe-1b-7b'].map((each) => parseShape(each))
  if (!shape || !other) throw new Error('no shape')
  const counts = Array.from({ length: 128 }, (_, e) => Math.round(2000 / (1 + e)))
  const placements = arrangements(clocks, shape, counts, h200)
  expect(placements.map(({ sms }) => sms.reduce((a, b) => a + b))).toEqual([132, 132, 132])
  const [byTiles, drifted, byBytes] = placements.map((placement) => JSON.stringify(placement.sliceOf))
  expect(byTiles).not.toBe(drifted)
  expect(byTiles).not.toBe(byBytes)
  expect(arrangements(clocks, other, counts, h200)).toEqual([])
  const [row] = file.measurements.rows
  if (!row) throw new Error('no row')
  const measured = placements.map(({ sms, sliceOf }, i) => ({
    ...row,
    tokens: 1024,
    sms,
    sliceOf,
    counts,
    us: 100 + i,
  }))
  const steps = arrangedOf([row, ...measured, row])
  expect(steps).toEqual([
    { shape: row.shape, tokens: 1024, busiest: 2000, byTilesUs: 100, driftedUs: 101, byBytesUs: 102 },
  ])
  expect(calibrationSection('f', { ...file, arranged: steps })).toContain('| 2000 | 100.0 | 101.0 | 102.0 | 0.98 |')
})

test('a step that other runs have, too, is the mean of them; what only they have is left out', () => {
  const [first, second, third] = file.measurements.rows
  if (!first || !second || !third) throw new Error('no rows')
  const of = (rows: readonly (typeof first)[]) => ({ ...file, measurements: { ...file.measurements, rows } })
  const slower = { ...first, us: first.us * 1.2 }
  const { measurements, what } = meanOf(of([first, second]), [
    of([slower, third]),
    of([{ ...first, us: first.us * 1.1 }]),
  ])
  expect(measurements.rows).toHaveLength(2)
  expect(measurements.rows[0]?.us).toBeCloseTo(first.us * 1.1, 9)
  expect(measurements.rows[0]?.samples).toBe(3 * first.samples)
  expect(measurements.rows[1]).toEqual(second)
  expect(what).toContain('the mean of up to 3 runs')
  expect(() => meanOf(file, [{ kind: 'skew' }])).toThrow(/calibration/)
})
