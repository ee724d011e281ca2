// The cache around real graphs: recorded steps have the bits of eager ones, what cannot be recorded runs eagerly, and nothing is left behind.
import { Graph, memoryStats, Stream, systemInfo, Tensor } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { Router, routers } from '../../router-kernels/src/index.js'
import { capturePolicies, GraphCache } from '../src/index.js'

const devices = ['cpu', ...(systemInfo().machine?.cuda.usable ? ['cuda:0'] : [])] as ('cpu' | 'cuda:0')[]

describe.each(devices)('on %s', (device) => {
  test('steps by graph and eagerly give the same bits, and a graph that was evicted is recorded again', async () => {
    const stream = Stream.create({ device })
    const router = new Router({ ...routers.mixtral({ numExperts: 8, topK: 2 }), device, stream })
    const cache = new GraphCache<Graph>({ policy: capturePolicies.after(2) })
    const logits = Tensor.randn([16, 8], { dtype: 'f32', device, stream, seed: 3 })
    const out = router.route(null, logits, { stream })
    const step = () => {
      router.route(null, logits, { stream, out })
    }
    const run = () =>
      cache.run('route', {
        eager: step,
        capture: () => Graph.capture(stream, step),
        replay: (graph) => graph.launch(),
      })
    const modes: string[] = []
    for (let i = 0; i < 8; i++) {
      if (i === 5) cache.evict('route')
      await logits.write(Float32Array.from({ length: 128 }, (_, k) => Math.sin(k * (i + 1))))
      modes.push(run().mode)
      const weights = await out.weights.toFloat32Array()
      const fresh = router.route(null, logits, { stream })
      expect(weights).toEqual(await fresh.weights.toFloat32Array())
      fresh.dispose()
    }
    expect(modes).toEqual(['eager', 'eager', 'graph', 'graph', 'graph', 'eager', 'eager', 'graph'])
    expect(cache.stats()).toMatchObject({ captures: 2, evictions: 1, fallbacks: { 'capture-failed': 0 } })
    // The driver hands memory to graphs in pieces: a small one may well add nothing.
    expect(cache.stats().bytes).toBeGreaterThanOrEqual(device === 'cpu' ? 1 : 0)
    for (const each of [cache, out, logits, router, stream]) each.dispose()
  })

  test('a step that allocates cannot be recorded: it runs eagerly, with the reason, and the stream stays usable', async () => {
    const stream = Stream.create({ device })
    const cache = new GraphCache<Graph>({ policy: capturePolicies.always() })
    const made: Tensor[] = []
    const step = () => {
      made.push(Tensor.randn([256], { dtype: 'f32', device, stream, seed: made.length }))
    }
    const run = () =>
      cache.run('allocates', {
        eager: step,
        capture: () => Graph.capture(stream, step),
        replay: (graph) => graph.launch(),
      })
    await stream.synchronize()
    const before = memoryStats(device).liveBytes
    for (let i = 0; i < 40; i++) expect(run().mode).toBe('eager')
    expect(cache.stats()).toMatchObject({ graphs: 0, fallbacks: { 'capture-failed': 39 } })
    expect(cache.stats().lastFallback).toMatch(/^capture failed: /)
    for (const tensor of made) tensor.dispose()
    cache.dispose()
    await stream.synchronize()
    expect(memoryStats(device).liveBytes).toBe(before)
    stream.dispose()
  })
})
