import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { renderBenchmarks, renderSlices, section } from '../src/docs.js'
import { benchmarksPage, resultsFolder, slicesPage } from '../src/paths.js'
import { calibrationResult, controlResult, isolationResult, skewResult } from './results.js'

test('docs/benchmarks.md says what the result files say', () => {
  expect(readFileSync(benchmarksPage, 'utf8')).toBe(renderBenchmarks(resultsFolder))
})

test('the tables of docs/slices.md say what the result file says', () => {
  const page = readFileSync(slicesPage, 'utf8')
  expect(page).toBe(renderSlices(page, resultsFolder))
  expect(() => renderSlices('no markers', resultsFolder)).toThrow(/<!-- simulator -->/)
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
})

test('calibration: beyond the aim is said', () => {
  expect(section('k.json', calibrationResult)).toContain('more than 10 % off at worst for olmoe-1b-7b (12.0 %)')
})
