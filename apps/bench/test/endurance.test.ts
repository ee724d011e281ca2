// `bench endurance`: what is read, what counts as growth, and that results stay.
import { systemInfo } from '@nexus/core'
import { describe, expect, test } from 'vitest'
import { enduranceBench, grown, type Reading } from '../src/endurance/bench.js'
import { parseShape } from '../src/shapes.js'

const noAddon = 'error' in systemInfo().addon

const reading = (steps: number, liveBytes: number, freeBytes: number | null, residentBytes: number): Reading => ({
  steps,
  liveBytes,
  freeBytes,
  residentBytes,
})

test('growth is from the second reading on: what the first steps make is no growth', () => {
  const readings = [reading(0, 10, 100, 5), reading(10, 50, 60, 70), reading(20, 50, 40, 60), reading(30, 51, 20, 71)]
  expect(grown(readings)).toEqual({ live: 1, device: 40, resident: 1 })
  expect(grown(readings.slice(0, 2))).toEqual({ live: 0, device: 0, resident: 0 })
  expect(grown([reading(0, 1, null, 1), reading(1, 1, null, 1)]).device).toBeNull()
  expect(() => grown(readings.slice(0, 1))).toThrow(/readings/)
})

describe.skipIf(noAddon)('on the CPU', () => {
  test('steps by graph and without: all of them, in sizes that take turns, and nothing held on the way', async () => {
    const said: string[] = []
    const { rows } = await enduranceBench({
      device: 'cpu',
      shape: parseShape('tiny:64:96:8:2'),
      tokens: [1, 16, 5],
      steps: 2000,
      seed: 1,
      onProgress: (line) => said.push(line),
    })
    expect(rows.map(({ launch, steps }) => [launch, steps])).toEqual([
      ['graph', 2000],
      ['eager', 2000],
    ])
    for (const { readings, grownBytes, sameBits } of rows) {
      expect(readings).toHaveLength(21)
      expect(readings.map(({ steps }) => steps)).toEqual(Array.from({ length: 21 }, (_, i) => i * 100))
      expect(readings.every(({ liveBytes }) => liveBytes > 0)).toBe(true)
      expect(grownBytes).toMatchObject({ live: 0, device: null })
      expect(sameBits).toBe(true)
    }
    expect(said.some((line) => line.startsWith('eager: 2000 of 2000 steps'))).toBe(true)
  })
})
