import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { renderBenchmarks, renderReadme, renderSlices, section } from '../src/docs.js'
import { benchmarksPage, readmePage, resultsFolder, slicesPage } from '../src/paths.js'
import { regionsSummary } from '../src/sections/regions.js'
import {
  ablationResult,
  calibrationResult,
  controlResult,
  enduranceResult,
  float32Result,
  isolationResult,
  kernelsResult,
  layerResult,
  routerResult,
  skewResult,
  sliceCostResult,
  startUpResult,
  tunedResult,
} from './results.js'

test('docs/benchmarks.md says what the result files say', () => {
  expect(readFileSync(benchmarksPage, 'utf8')).toBe(renderBenchmarks(resultsFolder))
})

test('the tables of docs/slices.md say what the result file says', () => {
  const page = readFileSync(slicesPage, 'utf8')
  expect(page).toBe(renderSlices(page, resultsFolder))
  expect(() => renderSlices('no markers', resultsFolder)).toThrow(/<!-- simulator -->/)
})

test('the README says what the result file of layers says', () => {
  const page = readFileSync(readmePage, 'utf8')
  expect(page).toBe(renderReadme(page, resultsFolder))
  expect(() => renderReadme('no markers', resultsFolder)).toThrow(/README\.md: expected <!-- speed -->/)
})

test('by region: every row once, ranges of what is there, and who is slower', () => {
  const text = regionsSummary(layerResult)
  const [first, second] = layerResult.rows
  if (!first || !second) throw new Error('no rows')
  expect(text).toContain('2 shapes on an')
  expect(text).toMatch(/Over 2 cells .* and in 1 slower/)
  expect(text).toContain('not installed')
  expect(text).toMatch(/\| 8 and 64 \| 1 \| 0\.97 to 0\.97 \| 1\.07 to 1\.07 \|/)
  expect(text).toMatch(/\| small configurations \| 1 \| 8\.00 to 8\.00 \|/)
  expect(text).not.toContain('\n| 1 |')
  const alone = regionsSummary({
    ...layerResult,
    rows: [
      { ...second, peers: {} },
      { ...first, skew: 1.5 },
    ],
  })
  expect(alone).toContain('Over 1 cells')
  expect(alone).toMatch(/\| small configurations \| 1 \| n\/a \|/)
  expect(alone).toMatch(/\| some experts hot \| 1 \| 0\.97 to 0\.97 \|/)
})

test('a kind without a section is refused by its name', () => {
  expect(() => section('x.json', { kind: 'mystery' } as never)).toThrow(/x\.json.*'mystery'/)
})

test('isolation: who gains, what the other pays, what cannot be known', () => {
  const text = section('i.json', isolationResult)
  expect(text).toContain('1 of 2 arrangements keep decode')
  expect(text).toMatch(/slices 48 \+ 84 holds decode's p99 at 1\.10 times .* costs prefill 40 % of its throughput/)
  expect(text).toMatch(/plain streams holds .* costs prefill 5 % of its throughput/)
  expect(text).toContain('No hardware slices keep the bound and give prefill at least 0.85')
  expect(text).toContain('co-resident could not be run: no shared memory')
  expect(text).toContain('Without joules: no counter')
  expect(text).toContain('| slices 48 + 84 |')
})

test('skew: gains and costs by the ends of the intervals, and what auto lost', () => {
  const text = section('s.json', skewResult)
  expect(text).toContain('`tiered` is faster than `fused` in 1 of 2 cells and slower in 1')
  expect(text).toContain('it gains most (10.0 %) on olmoe-1b-7b with 64 tokens and skew 1.5')
  expect(text).toContain('it costs most (20.0 %) on olmoe-1b-7b with 2048 tokens and skew 1.5')
  expect(text).toContain('`auto` loses more than 3 % to the better of `fused` and `tiered` in 1 of 2 cells')
})

test('control: what is over its bound is named', () => {
  const text = section('c.json', controlResult)
  expect(text).toContain('Over its bound: a switch; watching seed-small with 64 tokens.')
  expect(text).toContain('| a switch | 25.00 | 30.00 | under 20 | **no** |')
  expect(text).toContain('5.0 times less')
  expect(text).toMatch(/seed-small \| 64 \| 4\.00 \| 0\.75 \| 19\.50 \| 0\.25 \|/)
  const [watched] = controlResult.watched
  const { parts: _, ...older } = watched ?? expect.fail('no row')
  expect(section('c.json', { ...controlResult, watched: [older] })).not.toContain('Whose time')
})

test('calibration: beyond the aim is said', () => {
  expect(section('k.json', calibrationResult)).toContain('more than 10 % off at worst for olmoe-1b-7b (12.0 %)')
  const unfitted = section('k.json', { ...calibrationResult, fits: [] })
  expect(unfitted).toContain('no model was fitted')
  expect(unfitted).not.toContain('within 10 %')
})

test("calibration: another run's steps", () => {
  expect(section('k.json', calibrationResult)).not.toContain("Another run's")
  const off = { meanError: 0.02, p95Error: 0.05, maxError: 0.071 }
  const worst = { sms: [96, 36], busiest: 40, error: -0.071 }
  const steps = { shape: 'olmoe-1b-7b', tokens: 64 }
  const text = section('k.json', {
    ...calibrationResult,
    unseen: [
      { ...steps, rows: 15, off, worst, again: 0, moved: null },
      { ...steps, rows: 0, off: null, worst: null, again: 6, moved: { ...off, maxError: 0.033 } },
    ],
  })
  expect(text).toContain(
    '| 15 | 7.1 % | 5.0 % | 2.0 % | 96 + 36 SMs, at most 40 rows an expert: -7.1 % | 0 | – | – | – |',
  )
  expect(text).toContain('| 0 | – | – | – | – | 6 | 3.3 % | 5.0 % | 2.0 % |')
})

test('layer: the best peer, the aim, what is scaled and what has no row', () => {
  const text = section('l.json', layerResult)
  expect(text).toContain('1 of 2 cells are slower than the best peer: qwen3-30b-a3b with 64 tokens (0.97).')
  expect(text).toContain(
    '| qwen3-30b-a3b | 64 | 0 | 280.0 | 300.0 | 1.07 | 0.98 | **no** | 305.0 | 330.0 | 3.0e-3 | 0.97 (vllm_triton_best (anchor, scaled)) |',
  )
  expect(text).toContain('A peer marked *anchor, scaled* did not run in this call')
  expect(text).toContain('- mixtral-8x7b 64: out of memory')
})

test('router: aims, peers that are faster, bytes that were not counted', () => {
  const text = section('r.json', routerResult)
  expect(text).toContain('1 aims are missed: 128 experts with 16384 tokens.')
  expect(text).toContain('Slower than a peer (not all of them make buckets): 128 experts with 16384 tokens.')
  expect(text).toContain('| 128 | 8 | 64 | 5.00 | 6 | yes | 36.9 | 104.4 | n/a | 30.00 |')
  expect(text).toContain('Bytes were not counted: ncu is not on this machine.')
})

test('kernels: a variant that beats the chosen one is named', () => {
  const text = section('k.json', kernelsResult)
  expect(text).toContain(
    'Faster than what is chosen by more than 2 %: olmoe-1b-7b with 64 tokens, linear1: better (90.0 against 100.0 us).',
  )
  expect(text).toContain('| olmoe-1b-7b | 64 | linear1 | worse | no | 120.00 |')
  expect(text).toContain('Not measured: NEXUS_CUDA_ARCH=80: not built.')
})

test('ablation: each rung by the one that it adds to, losses as losses', () => {
  const text = section('a.json', ablationResult)
  expect(text).toContain(
    '`+ graphs` is best, 80.0 times as fast as the textbook loop, torch; `+ slices` loses to `+ graphs`',
  )
  expect(text).toMatch(/\| \+ graphs \| .* \| 1\.60 of fused kernels \| 80\.0 \|/)
  expect(text).toMatch(/\| \+ slices \| .* \| 0\.50 of \+ graphs, a loss \| 40\.0 \|/)
  expect(text).toContain('Not known in some rows, joulesPerToken: too short.')
  expect(text).toContain('seed-small 64, + streams: no streams.')
})

test('slice-cost: a constant, a part, or nothing', () => {
  const text = section('s.json', sliceCostResult)
  expect(text).toContain('64 SMs, graph: 25.00 µs and 0.1 % of the step; mostly a constant: launching')
  expect(text).toContain('64 SMs, eager: 0.20 µs and 9.0 % of the step; mostly a part of the step')
  expect(text).toContain('64 SMs by a cap, graph: 0.20 µs and 0.1 % of the step; next to nothing')
  expect(text).toContain('| seed-small | 64 | 64 SMs | 55.00 (25.00) |')
  expect(text).toContain('- On 4 SMs: too small.')
})

test('start-up: a first forward beyond the bound in any run is named', () => {
  const text = section('s.json', startUpResult)
  expect(text).toContain('A first forward took 200 ms or more: mixtral-8x7b with 512 tokens.')
  expect(text).toContain('| seed-small | 64 | 900 | 25.0 | 30.0 | 0.40 | 0.30 |')
  expect(text).toContain('qwen3-30b-a3b 64 tokens could not be run: out of memory.')
  const { rows } = startUpResult
  expect(section('s.json', { ...startUpResult, rows: rows.slice(0, 1) })).toContain(
    'Every first forward took less than',
  )
})

test('endurance: what grew on the device is named, and bits that changed', () => {
  const text = section('e.json', enduranceResult)
  expect(text).toContain('Memory of the device grew: eager.')
  expect(text).toContain('| by graph | 1000 | 2.0 | 2.0 | 0 | 0 | 2 | yes |')
  expect(text).toContain('| one operation at a time | 1000 | 3.0 | 2.0 | 1 | n/a | -1 | **no** |')
  const { rows } = enduranceResult
  expect(section('e.json', { ...enduranceResult, rows: rows.slice(0, 1) })).toContain('in use grew.')
})

test('float32: beside the faster of the two rates of cuBLAS', () => {
  const text = section('f.json', float32Result)
  expect(text).toContain('Less than 0.5 of cuBLAS’s rate: seed-medium with 512 tokens.')
  expect(text).toContain('| olmoe-1b-7b | 4096 | 4000 | 36.0 | 30.0 | 50.0 | 0.72 | 4.0e-7 |')
  const rows = float32Result.rows.map((row) => ({ ...row, sgemmTflops: null }))
  const alone = section('f.json', { ...float32Result, rows, squareTflops: null, peerError: 'no torch' })
  expect(alone).toContain('cuBLAS has no rate: no torch.')
  expect(alone).toContain('| n/a | n/a | n/a |')
})

test('tuned: a default that is behind, one that cannot be told, and what was not reached', () => {
  const text = section('t.json', tunedResult)
  expect(text).toContain('The default is more than 5 % behind: olmoe-1b-7b with 64 tokens.')
  expect(text).toContain('Too noisy to tell: olmoe-1b-7b with 512 tokens.')
  expect(text).toContain('Tuning a shape took at most 31 s.')
  expect(text).toContain('Not reached in the time: olmoe-1b-7b with 4096 tokens.')
  expect(text).toContain('| olmoe-1b-7b | 64 | one, two | one, three | 8.0 % | 2.0 % |')
  expect(text).toContain('| olmoe-1b-7b | 8 | one, two | the same | 0.0 % | 1.0 % |')
})
