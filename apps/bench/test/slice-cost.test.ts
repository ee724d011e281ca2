// `bench slice-cost`: what a slice adds to a step, as a constant and a part of it.
import { systemInfo } from '@nexus/core'
import { describe, expect, test } from 'vitest'
import { parseShape } from '../src/shapes.js'
import { type SliceCostOptions, sliceCostBench } from '../src/slice-cost/bench.js'
import { fitCost } from '../src/slice-cost/fit.js'

const noAddon = 'error' in systemInfo().addon

describe('the fit', () => {
  const steps = [10, 30, 100, 300, 1000]
  test('finds a constant and a part where they are', () => {
    for (const [a, b] of [
      [25, 0],
      [0, 0.09],
      [3.5, 0.02],
      [-1, 0.1],
    ] as const) {
      const fit = fitCost(steps.map((wholeUs) => ({ wholeUs, sliceUs: wholeUs + a + b * wholeUs })))
      expect(fit?.constantUs).toBeCloseTo(a, 8)
      expect(fit?.part).toBeCloseTo(b, 10)
      expect(fit?.worst).toBeLessThan(1e-9)
      expect(fit?.points).toBe(5)
    }
  })
  test('lets a microsecond of a short step count for more', () => {
    const points = steps.map((wholeUs) => ({ wholeUs, sliceUs: wholeUs + 5 }))
    const noisy = [...points, { wholeUs: 2000, sliceUs: 2105 }]
    expect(fitCost(noisy)?.constantUs).toBeCloseTo(5, 0)
  })
  test('needs two lengths of step', () => {
    expect(fitCost([])).toBeNull()
    expect(fitCost([{ wholeUs: 10, sliceUs: 12 }])).toBeNull()
    expect(fitCost(new Array(3).fill({ wholeUs: 10, sliceUs: 12 }))).toBeNull()
  })
})

describe.skipIf(noAddon)('on the CPU', () => {
  const tiny = parseShape('tiny:64:96:8:2')
  const options: SliceCostOptions = {
    device: 'cpu',
    cells: [
      { shape: tiny, tokens: 1 },
      { shape: tiny, tokens: 64 },
    ],
    sms: [2],
    budgetMs: 4,
    seed: 1,
    onProgress: () => {},
  }
  test('every step in every place, with its phases', async () => {
    const { rows, probes, fits, failed } = await sliceCostBench(options)
    expect(failed).toEqual([])
    const [whole] = probes
    expect(rows.map(({ tokens, sms, where }) => [tokens, sms, where])).toEqual([
      [1, whole?.sms, 'device'],
      [1, 2, 'slice'],
      [64, whole?.sms, 'device'],
      [64, 2, 'slice'],
    ])
    for (const { graphUs, eagerUs, phasesUs } of rows) {
      for (const us of [graphUs, eagerUs, ...Object.values(phasesUs)]) expect(us).toBeGreaterThan(0)
    }
    for (const probe of probes) expect(Object.values(probe)).not.toContain(Number.NaN)
    expect(fits.map(({ sms, how }) => `${sms} ${how}`)).toEqual(['2 graph', '2 eager'])
  })
  test('a slice that cannot be made is written down', async () => {
    const { rows, failed } = await sliceCostBench({ ...options, cells: options.cells.slice(0, 1), sms: [1000] })
    expect(failed).toMatchObject([{ sms: 1000, why: expect.stringContaining('--sms') }])
    expect(rows).toHaveLength(1)
  })
})
