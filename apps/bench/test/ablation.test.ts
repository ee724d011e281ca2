// `bench ablation`: every rung runs, is checked, and says what could not be metered.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type EnergyMonitor, systemInfo } from '@nexus/core'
import { afterAll, describe, expect, test } from 'vitest'
import { type AblationOptions, ablationBench } from '../src/ablation/bench.js'
import { meteredRun } from '../src/ablation/metered.js'
import { ownLoop, rungs, torchLoop } from '../src/ablation/rungs.js'
import { parseShape } from '../src/shapes.js'
import { fakePython } from './fake-peers.js'

const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-ablation-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** textbook_loop.py: 100 steps of 50 µs, once it is told to go. */
const loop = (error: number) => `
const [name] = args.shape[0].split(':')
fs.readFileSync(args.logits[0] + '/' + name + '-' + args.tokens[0] + '-0.f32')
say({ event: 'ready', error: ${error} })
require('node:readline').createInterface({ input: process.stdin }).once('line', () => {
  say({ event: 'done', steps: 100, seconds: 0.005, latenciesUs: new Array(100).fill(50) })
  process.exit(0)
})
`

const options: AblationOptions = {
  device: 'cpu',
  cells: [{ shape: parseShape('tiny:64:96:8:2'), tokens: 16, skew: 1.5 }],
  seconds: 0.03,
  seed: 1,
  torch: true,
  onProgress: () => {},
}

test('rungs stand on one another', () => {
  const names = [ownLoop, ...rungs.map(({ name }) => name)]
  for (const { name, base } of rungs) expect(names.indexOf(base)).toBeLessThan(names.indexOf(name))
})

test('what is metered, and why it is not', async () => {
  const measured = {
    joules: 6,
    reason: null,
    meanWatts: 3,
    smActivity: 0.5,
    smOccupancy: null,
    reasons: { smOccupancy: 'no GPM' },
  }
  const monitor = {
    measure: async (run: () => Promise<unknown>) => ({
      tensorActivity: 0,
      dramActivity: 1,
      memoryUtilisation: 1,
      ...measured,
      result: await run(),
    }),
  } as unknown as EnergyMonitor
  const run = async () => ({ steps: 3, seconds: 2, latenciesUs: [1, 1, 1] })
  const { metered, times } = await meteredRun(monitor, run, 4)
  expect(times.steps).toBe(3)
  expect(metered).toMatchObject({ joulesPerToken: 0.5, watts: 3, smActivity: 0.5, smOccupancy: null })
  expect(metered.reasons).toEqual({ smOccupancy: 'no GPM' })
})

describe.skipIf(noAddon)('on the CPU', () => {
  test('every rung, checked, with the fused bytes', async () => {
    const python = fakePython(scratch, 'loop', loop(3e-3))
    const { rows, failed } = await ablationBench({ ...options, python })
    expect(failed).toEqual([])
    expect(rows.map(({ rung }) => rung)).toEqual([torchLoop, ownLoop, ...rungs.map(({ name }) => name)])
    expect(rows[0]).toMatchObject({ steps: 100, p50Us: 50, tokensPerSecond: 320_000, sameBits: null })
    for (const row of rows) {
      expect(row.relativeError).toBeLessThan(6e-3)
      expect(row.p99Us).toBeGreaterThanOrEqual(row.p50Us)
      expect(row.steps).toBeGreaterThanOrEqual(3)
      expect(row.reasons.smActivity).toBeTruthy()
    }
    expect(rows.slice(2).map(({ sameBits }) => sameBits)).toEqual(rungs.map(() => true))
  })

  test('a loop in PyTorch that is wrong, or cannot run, is no row', async () => {
    for (const [name, body, why] of [
      ['wrong', loop(0.5), /the output is wrong: relative error 0\.5/],
      ['dead', 'process.exit(4)', /the textbook loop ended with 4/],
      [
        'silent',
        "say({ event: 'ready', error: 0 }); process.stdin.once('data', () => process.exit(5))",
        /ended with 5/,
      ],
    ] as const) {
      const python = fakePython(scratch, name, body)
      const { rows, failed } = await ablationBench({ ...options, seconds: 0.001, python })
      expect(rows.map(({ rung }) => rung)).not.toContain(torchLoop)
      expect(failed).toMatchObject([{ rung: torchLoop, why: expect.stringMatching(why) }])
    }
  })
})
