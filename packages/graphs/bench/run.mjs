// What a hot step costs besides its replay:   node packages/graphs/bench/run.mjs     (built first: npm run build)
// Nanoseconds of GraphCache.run with a replay that does nothing, over the same replay called directly; medians of batches, in turns. JSON.
import { cpus } from 'node:os'
import { GraphCache, graphKey } from '../dist/index.js'

const BATCH = 20_000
const ROUNDS = 60
const graph = { bytes: 1000, captureMs: 1, dispose() {} }
let launched = 0
const step = {
  eager: () => ++launched,
  capture: () => graph,
  replay: () => ++launched,
  tokens: 50,
  bucket: 64,
}
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]

function time(body) {
  const begin = process.hrtime.bigint()
  for (let i = 0; i < BATCH; i++) body(i)
  return Number(process.hrtime.bigint() - begin) / BATCH
}

function measure(keys) {
  const cache = new GraphCache()
  for (const key of keys) for (let i = 0; i < 4; i++) cache.run(key, step)
  const hot = []
  const bare = []
  for (let round = 0; round < ROUNDS; round++) {
    hot.push(time((i) => cache.run(keys[i % keys.length], step)))
    bare.push(time(() => step.replay(graph)))
  }
  const { hits, graphs } = cache.stats()
  cache.dispose()
  return { keys: keys.length, graphs, hits, runNs: median(hot), bareNs: median(bare) }
}

const key = (bucket) =>
  graphKey({
    bucket,
    layout: 'NVIDIA H200: hot=84 cold=48',
    strategy: 'tiered',
    assignment: null,
    dtype: 'bf16',
    topK: 8,
  })
const results = [measure([key(64)]), measure(Array.from({ length: 200 }, (_, i) => key(i)))]
console.log(JSON.stringify({ node: process.version, cpu: cpus()[0]?.model ?? null, launched, results }, null, 2))
