// The file that docs/calibration.md shows is one.
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { calibrate, checkMeasurements } from '../src/simulator.js'

test('the documented measurements can be read, and calibrated by', () => {
  const text = readFileSync(new URL('../../../docs/calibration.md', import.meta.url), 'utf8')
  const [, json = ''] = /```json\n([\s\S]*?)```/.exec(text) ?? []
  const measured = checkMeasurements(JSON.parse(json))
  expect(measured.rows[0]).toMatchObject({ strategy: 'tiered', us: 31.4 })
  expect(calibrate(measured).agreement.maxError).toBeLessThan(0.01)
})
