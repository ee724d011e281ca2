// `bench tuned`: whole steps by the default and by what tune found.
import { systemInfo } from '@nexus/core'
import { expect, test } from 'vitest'
import { parseShape } from '../src/shapes.js'
import { tunedBench } from '../src/tuned/bench.js'

test.skipIf('error' in systemInfo().addon)(
  'a row for each step, and the steps that the time did not reach',
  async () => {
    const common = { device: 'cpu', tokens: [1, 16], seed: 1, onProgress: () => {} } as const
    const [tiny, other] = ['tiny:64:96:8:2', 'other:96:64:4:1'].map((text) => parseShape(text))
    if (!tiny || !other) throw new TypeError('two shapes are needed')
    const { rows, seconds, skipped } = await tunedBench({ ...common, shapes: [tiny, other], seconds: 20 })
    expect(rows.map(({ shape, tokens }) => `${shape} ${tokens}`)).toEqual(['tiny 1', 'tiny 16', 'other 1', 'other 16'])
    for (const { heuristic, chosen, speedup, noise } of rows) {
      expect([heuristic.length, chosen.length]).toEqual([2, 2])
      expect(speedup).toBeGreaterThanOrEqual(1)
      if (speedup > 1) expect(speedup).toBeGreaterThan(1 + noise)
      else expect(chosen).toEqual(heuristic)
    }
    expect(Object.keys(seconds)).toEqual(['tiny', 'other'])
    expect(skipped).toEqual([])
    // The time is over behind the first bucket at the latest.
    const hurried = await tunedBench({ ...common, shapes: [tiny], seconds: 1e-3 })
    expect(hurried.skipped).toContainEqual({ shape: 'tiny', tokens: 16 })
    expect(hurried.rows.length + hurried.skipped.length).toBe(2)
  },
  60_000,
)
