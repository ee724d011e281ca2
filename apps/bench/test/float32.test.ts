// `bench float32`: the layer's own rate, and cuBLAS's by a stand-in for its script.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemInfo } from '@nexus/core'
import { afterAll, describe, expect, test } from 'vitest'
import { type Float32Options, float32Bench } from '../src/float32/bench.js'
import { sgemmTimes } from '../src/float32/sgemm.js'
import { parseShape } from '../src/shapes.js'
import { fakePython } from './fake-peers.js'

const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-float32-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** 10 µs for each token of a cell, and 1e6 µs for the square. */
const script = `
for (const cell of args.cell) say({ cell, us: 10 * Number(cell.split('/')[1]) })
say({ cell: 'square', us: 1e6 })
`
const cells = [16, 3].map((tokens) => ({ shape: parseShape('tiny:64:96:8:2'), tokens }))

describe('the peer', () => {
  test('times of every cell, in their order, and of the square', async () => {
    const python = fakePython(scratch, 'sgemm', script)
    expect(await sgemmTimes({ cells, budgetMs: 1, python })).toEqual({ cells: [160, 30], squareUs: 1e6 })
  })
  test('one that leaves out a cell, ends badly or is not there says so', async () => {
    const partly = fakePython(scratch, 'partly', "say({ cell: 'square', us: 1 })")
    await expect(sgemmTimes({ cells, budgetMs: 1, python: partly })).rejects.toThrow(/no time of tiny:64:96:8:2\/16/)
    const failing = fakePython(scratch, 'failing', 'process.exit(3)')
    await expect(sgemmTimes({ cells, budgetMs: 1, python: failing })).rejects.toThrow(/ended with 3/)
    await expect(sgemmTimes({ cells, budgetMs: 1, python: join(scratch, 'none') })).rejects.toThrow(/need python3/)
  })
})

describe.skipIf(noAddon)('on the CPU', () => {
  const options: Float32Options = { device: 'cpu', cells, budgetMs: 3, seed: 1, peer: true, onProgress: () => {} }
  test('rates of ours and of cuBLAS by the same arithmetic, and an error that only float32 has', async () => {
    const { rows, squareTflops, peerError } = await float32Bench({ ...options, python: join(scratch, 'sgemm') })
    expect(peerError).toBeNull()
    expect(squareTflops).toBeCloseTo((2 * 8192 ** 3) / 1e12, 6)
    expect(rows.map(({ tokens }) => tokens)).toEqual([16, 3])
    for (const { tokens, nexusUs, nexusTflops, sgemmTflops, relativeError } of rows) {
      const flop = 6 * tokens * 2 * 64 * 96
      expect(nexusTflops).toBeCloseTo(flop / nexusUs / 1e6, 9)
      expect(sgemmTflops).toBeCloseTo(flop / (10 * tokens) / 1e6, 9)
      expect(relativeError).toBeGreaterThan(0)
      expect(relativeError).toBeLessThan(2e-6)
    }
  })
  test('without the peer our own rates are there, with the reason', async () => {
    const lost = await float32Bench({ ...options, python: join(scratch, 'none') })
    expect(lost).toMatchObject({ squareTflops: null, peerError: expect.stringContaining('python3') })
    expect(lost.rows.map(({ sgemmTflops }) => sgemmTflops)).toEqual([null, null])
    expect((await float32Bench({ ...options, peer: false })).peerError).toBe('not asked for')
  })
})
