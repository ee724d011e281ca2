import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemInfo } from '@nexus/core'
import { afterAll, expect, test } from 'vitest'
import { cpuBench } from '../src/cpu/cpu-bench.js'
import { PeerServer } from '../src/cpu/peer-server.js'
import { beyondCache, type CpuResult, layerAim } from '../src/cpu/result.js'
import { type Faster, inTurns, leastFaster, timesFaster } from '../src/cpu/turns.js'
import { section } from '../src/docs.js'
import { parseShape } from '../src/shapes.js'

const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-cpu-test-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const faster = (ratio: number, fastest = ratio): Faster => ({ ratio, low: ratio, high: ratio, pairs: 9, fastest })

const result = (loop: Faster, products: Faster, bf16: Faster): CpuResult => ({
  kind: 'cpu',
  what: 'a layer',
  environment: {
    date: '2026-01-02T03:04:05.000Z',
    node: 'v20',
    device: 'cpu',
    driver: null,
    cudaRuntime: null,
    cpu: 'a processor',
    cpuThreads: 2,
    isa: 'avx2',
    lastLevelCacheBytes: 2 ** 25,
    torch: '2.0',
    torchCapability: 'AVX2',
    blas: { 'openblas-auto': 'core Zen' },
    load: [0, 0.5],
  },
  seed: 1,
  rounds: 9,
  peersError: null,
  layer: [
    {
      shape: 's',
      tokens: 1,
      expertsHit: 2,
      nexusUs: 100,
      nexusMinUs: 90,
      alone: { us: 110, minUs: 100 },
      peers: { loop: { us: 200, minUs: 180, faster: loop, difference: 1e-6 } },
      failed: { grouped_mm: 'no such product' },
      fasterThanBest: leastFaster(loop),
      aim: 1,
      bf16: { us: 50, faster: bf16, difference: 4e-3, touchedBytes: 2 ** 30, aim: 1.7 },
    },
  ],
  gemm: [
    {
      shape: 's',
      tokens: 1,
      library: 'openblas-auto',
      nexusUs: 90,
      nexusGflops: 200,
      libraryUs: 100,
      libraryGflops: 180,
      ratio: products,
      aim: 0.8,
    },
  ],
})

test('a section says which aims are met, and by the less favourable of medians and fastest rounds', () => {
  const good = section('c.json', result(faster(2, 1.9), faster(1.1), faster(1.8)))
  expect(good).toContain('(up to 128 tokens; 0.9 of it beyond): in all of 1 cells, at least 1.90 times.')
  expect(good).toContain('at 0.8 of OpenBLAS’s rate: in all of 1 cells')
  expect(good).toContain('weights beyond the last-level cache: in all of 1 cells, at least 1.80 times.')
  expect(good).toContain('Peers that could not be timed: grouped_mm, s with 1 token: no such product.')
  const bad = section('c.json', result(faster(2, 0.95), faster(0.7), faster(1.8, 1.6)))
  expect(bad).toContain('beyond): not in s with 1 token (0.95).')
  expect(bad).toContain('rate: not in s with 1 token (0.70).')
  expect(bad).toContain('cache: not in s with 1 token (1.60).')
})

test('a result without peers says why, and claims nothing', () => {
  const whole = result(faster(2), faster(2), faster(2))
  const text = section('c.json', {
    ...whole,
    environment: { ...whole.environment, torch: null, torchCapability: null, blas: {} },
    peersError: 'no torch here',
    layer: whole.layer.map((row) => ({ ...row, peers: {}, failed: {}, fasterThanBest: null })),
    gemm: [],
  })
  expect(text).toContain('no peers: no torch here')
  expect(text).toContain('0.9 of it beyond): not compared.')
  expect(text).toContain('OpenBLAS’s rate: not compared.')
})

test('the aims of the CPU', () => {
  expect([1, 16, 128, 129, 512].map(layerAim)).toEqual([1, 1, 1, 0.9, 0.9])
  expect(beyondCache(2 ** 28, null)).toBe(true)
  expect(beyondCache(2 ** 28 - 1, null)).toBe(false)
  expect(beyondCache(8 * 2 ** 25, 2 ** 25)).toBe(true)
  expect(beyondCache(7 * 2 ** 25, 2 ** 25)).toBe(false)
})

test('turns: everyone runs in every round, as many calls as fit, and each follows each', async () => {
  const log: string[] = []
  const contestant = (name: string, us: number) => ({
    name,
    turn: async (calls: number) => {
      log.push(`${name}${calls}`)
      return us
    },
  })
  const times = await inTurns([contestant('a', 1000), contestant('b', 4000), contestant('c', 1e6)], 4, 8)
  const [a, b] = [times.get('a'), times.get('b')]
  expect(log.filter((entry) => entry === 'a8')).toHaveLength(4)
  expect(log.filter((entry) => entry === 'b2')).toHaveLength(4)
  expect(log.slice(9)).toEqual(['a8', 'b2', 'c1', 'b2', 'c1', 'a8', 'c1', 'a8', 'b2', 'a8', 'b2', 'c1'])
  if (a === undefined || b === undefined) throw new Error('both were timed')
  expect(timesFaster(b, a)).toMatchObject({ ratio: 4, fastest: 4, pairs: 4 })
})

// Node in the interpreter's place: the protocol is what is tested, torch need not be there.
const script = (name: string, text: string) => {
  const path = join(scratch, name)
  writeFileSync(path, text)
  return path
}
const answering = script(
  'peer.mjs',
  `import { createInterface } from 'node:readline'
console.log(JSON.stringify({ torch: process.argv[2], peers: [], blas: {}, threads: 1, capability: '' }))
for await (const line of createInterface({ input: process.stdin })) {
  const { op, n } = JSON.parse(line)
  if (op === 'die') process.exit(3)
  console.log(op === 'noise' ? 'not JSON' : JSON.stringify(op === 'fail' ? { error: 'Boom: 7' } : { us: n }))
}`,
)

test('the peers answer in order; an error of theirs is one answer, and they go on', async () => {
  const [server, hello] = await PeerServer.start(process.execPath, ['1.2'], answering)
  using _ = server
  expect(hello.torch).toBe('1.2')
  expect(await Promise.all([1, 2, 3].map((n) => server.ask('time', { n })))).toEqual([{ us: 1 }, { us: 2 }, { us: 3 }])
  await expect(server.ask('fail')).rejects.toThrow('Boom: 7')
  await expect(server.ask('noise')).rejects.toThrow("answered 'not JSON', which is not JSON")
  expect(await server.ask('time', { n: 4 })).toEqual({ us: 4 })
  await expect(server.ask('die')).rejects.toThrow('the peers ended with 3')
  await expect(server.ask('time', { n: 5 })).rejects.toThrow('the peers ended with 3')
})

test('an interpreter that is not there, or ends at once, is said', async () => {
  await expect(PeerServer.start(join(scratch, 'no-python'), [])).rejects.toThrow(
    /--python: '.*no-python' cannot be started/,
  )
  await expect(PeerServer.start(process.execPath, [], script('dies.mjs', 'process.exit(1)'))).rejects.toThrow(
    'the peers ended with 1',
  )
})

test.skipIf(noAddon)(
  'without peers ours is measured alone, and the result says so',
  async () => {
    const lines: string[] = []
    const measured = await cpuBench({
      shapes: [parseShape('tiny:64:32:4:2')],
      tokens: [1, 5],
      threads: null,
      rounds: 3,
      turnMs: 1,
      seed: 1,
      python: null,
      openblas: null,
      openblasCores: ['auto'],
      onProgress: (line) => lines.push(line),
    })
    expect(measured.peersError).toBe('none were asked for')
    expect(lines).toHaveLength(2)
    expect(measured.layer.map(({ shape, tokens, fasterThanBest }) => [shape, tokens, fasterThanBest])).toEqual([
      ['tiny', 1, null],
      ['tiny', 5, null],
    ])
    for (const { nexusUs, alone, bf16, expertsHit } of measured.layer) {
      expect(nexusUs).toBeGreaterThan(0)
      expect(alone.us).toBeGreaterThan(0)
      expect(bf16.difference).toBeGreaterThan(0) // narrower weights do not compute the same
      expect(bf16.difference).toBeLessThan(0.02)
      expect(bf16.aim).toBe(null) // in any cache
      expect(expertsHit).toBeGreaterThanOrEqual(2)
    }
    expect(() => section('tiny.json', JSON.parse(JSON.stringify(measured)))).not.toThrow()
  },
  60_000,
)
