import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { benchmarksPage, renderBenchmarks, resultsFolder } from '../src/docs.js'

test('docs/benchmarks.md says what the result files say', () => {
  expect(readFileSync(benchmarksPage, 'utf8')).toBe(renderBenchmarks(resultsFolder))
})
