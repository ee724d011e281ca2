// The fits of a calibration's result file follow from its measurements, without the device.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { h200 } from '@nexus/slices'
import { expect, test } from 'vitest'
import { resultsFolder } from '../src/paths.js'
import { type CalibrationResult, refit } from '../src/scheduling/calibration.js'

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

test('what is no calibration is refused', () => {
  expect(() => refit({ kind: 'skew' }, h200, () => {})).toThrow(/expected a result file of kind 'calibration'/)
  expect(() => refit(null, h200, () => {})).toThrow(/expected a result file/)
  expect(() => refit({ ...file, measurements: { ...file.measurements, rows: [{}] } }, h200, () => {})).toThrow(
    /measurements\.rows\[0\]/,
  )
})
