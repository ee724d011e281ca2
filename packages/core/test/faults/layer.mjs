// Layers among faults: a device that breaks, memory that runs out, recording that fails, steps that never end.
import { MoELayer, policies, Stream } from '@nexus/core'
import { arm, backTo, caught, device, disarm, fate, given, run, sleep, steady, timed } from './child.mjs'
import { layersOn, partitions } from './layers.mjs'

const { shape, input, expectedOf, right, same } = layersOn(device)

/** Options of a layer by strategy, with the control loop at every step. */
function scheduled(strategy) {
  if (strategy === 'plain') return { ...shape }
  const sliced = strategy === 'tiered' || strategy === 'cooperative'
  return {
    ...shape,
    strategy,
    // Layouts change when a test wants it, and only then.
    ...(sliced && { slices: { updateEverySteps: 1, policy: given.restless ? restless() : policies.static() } }),
    ...(strategy === 'streams' && { streams: { count: 3 } }),
    ...(given.graphs !== false && { graphs: { captureAfter: 1 } }),
    profiler: true,
  }
}

/** Other sizes at every decision where `layouts` is set, and experts that always move. */
function restless() {
  let decisions = 0
  return {
    name: 'restless',
    decide({ load, constraints: { sms, granularity, minSms } }) {
      const least = Math.ceil(minSms / granularity) * granularity
      const at = decisions++
      const first = given.restless === 'layouts' ? least + granularity * (at % 3) : least
      return { sms: [sms - first, first], sliceOf: load.map((_, e) => (e + at) % 2), reason: `decision ${at}` }
    },
  }
}

await run({
  // The device breaks at the second step from now, in a layer that has run for a while.
  async broken() {
    const elsewhere = await MoELayer.create({ ...shape, device: 'cpu', stream: Stream.create({ device: 'cpu' }) })
    const neighbour = await MoELayer.create({ ...shape, seed: 6 })
    const layer = await MoELayer.create(scheduled(given.strategy))
    const x = input(16)
    for (let i = 0; i < 6; i++) layer.enqueue(x).dispose()
    await Stream.default(device).synchronize()
    const inFlight = layer.forward(x)
    inFlight.catch(() => undefined)
    arm(given.fault)
    const first = await caught(() => layer.enqueue(x).dispose())
    const second = await caught(() => layer.enqueue(x).dispose())
    const result = {
      first,
      second,
      inFlight: await fate(inFlight, 10_000),
      enqueue: await caught(() => layer.enqueue(x)),
      forward: await caught(() => layer.forward(x)),
      stats: await caught(() => layer.performanceStats()),
      neighbour: await caught(() => neighbour.forward(x)),
      another: await caught(() => MoELayer.create(shape)),
      // The CPU's own fault is in every stream of it: only another device is none of its business.
      elsewhere: device === 'cpu' ? null : await caught(() => elsewhere.forward(new Float32Array(64))),
      disposeMs: await timed(() => layer.dispose()),
      again: await caught(() => layer.dispose()),
      disposed: await caught(() => layer.enqueue(x)),
    }
    neighbour.dispose()
    return result
  },

  // A fault that passes: an error of whatever kind, at a point that a step or a decision passes. The step may throw or go on without what
  // could not be made; the one after is right, and so is memory.
  async passing() {
    const x = input(16)
    const expected = await expectedOf(x)
    const steps = async (fault) => {
      const layer = await MoELayer.create(scheduled(given.strategy))
      const errors = []
      let wrong = 0
      for (let i = 0; i < (given.early ? 1 : 4); i++) wrong += (await right(layer, x, expected)) ? 0 : 1
      if (fault) arm(fault)
      for (let i = 0; i < 24; i++) {
        const error = await caught(async () => {
          wrong += (await right(layer, x, expected)) ? 0 : 1
        })
        if (error !== null) errors.push(error)
      }
      disarm()
      for (let i = 0; i < 4; i++) wrong += (await right(layer, x, expected)) ? 0 : 1
      const { graphs, strategy } = layer.performanceStats()
      layer.dispose()
      return { wrong, errors, graphs, failures: strategy?.failures ?? 0, last: strategy?.lastFailure ?? null }
    }
    await steps(null)
    const before = await steady(partitions)
    const { graphs, ...rest } = await steps(given.fault)
    return {
      ...rest,
      graphs: graphs && { hits: graphs.hits > 0, fallbacks: graphs.fallbacks, last: graphs.lastFallback },
      leaked: await backTo(before, partitions),
    }
  },

  // Everything that making a layer and its first steps passes fails once, one after the other.
  async sweep() {
    const x = input(16)
    const expected = await expectedOf(x)
    const life = async () => {
      const layer = await MoELayer.create(scheduled(given.strategy))
      try {
        let wrong = 0
        for (let i = 0; i < 4; i++) wrong += (await right(layer, x, expected)) ? 0 : 1
        const { output } = await layer.forward(x)
        return wrong + ((await same(output, expected)) ? 0 : 1)
      } finally {
        layer.dispose()
      }
    }
    await life()
    await life()
    const before = await steady(partitions)
    const seen = {}
    const leaks = []
    let wrong = 0
    let passes = 0
    for (let quiet = 0; passes < (given.most ?? 200) && quiet < 3; ) {
      passes++
      arm(`${given.point}:${passes}:${given.kind}`)
      const error = await caught(async () => {
        wrong += await life()
      })
      disarm()
      quiet = error === null ? quiet + 1 : 0
      if (error !== null) {
        const which = `${error.name} ${error.code}`
        seen[which] = (seen[which] ?? 0) + 1
        if (!/injected/.test(error.message)) leaks.push({ unexpected: error })
      }
      const leaked = await backTo(before, partitions)
      if (leaked !== null) leaks.push({ passes, error, leaked })
      if (leaks.length > 2) break
    }
    return { seen, wrong, leaks, faults: Object.values(seen).reduce((a, b) => a + b, 0) }
  },

  // A step that never ends: its promise stays pending, nothing that is called waits for it, other streams go on.
  async hang() {
    const stream = Stream.create({ device })
    const layer = await MoELayer.create({ ...scheduled(given.strategy), stream })
    const other = await MoELayer.create({ ...shape, seed: 7 })
    const x = input(16)
    for (let i = 0; i < 4; i++) layer.enqueue(x).dispose()
    await stream.synchronize()
    arm(`${given.graphs === false ? 'layer.step' : 'graph.launch'}:1:hang`)
    const enqueueMs = await timed(() => layer.enqueue(x).dispose())
    disarm()
    const forward = layer.forward(x)
    const pending = await fate(forward, 200)
    const beside = await other.forward(x).then(({ stats }) => stats.tokens)
    const disposeMs = await timed(() => layer.dispose())
    const after = await caught(() => layer.forward(x))
    const still = await fate(forward, 100)
    const asyncDispose = await fate(layer[Symbol.asyncDispose](), 100)
    process.stdout.write(
      `${JSON.stringify({ quick: enqueueMs < 1000 && disposeMs < 1000, pending, beside, after, still, asyncDispose })}\n`,
    )
    if (given.exit) process.exit(0)
  },

  // The same in nobody's way: no promise waits, so that the process ends by itself.
  async forgotten() {
    const stream = Stream.create({ device })
    const layer = await MoELayer.create({ ...shape, stream })
    const x = input(16)
    layer.enqueue(x).dispose()
    await stream.synchronize()
    arm('layer.step:1:hang')
    layer.enqueue(x).dispose()
    layer.dispose()
    await sleep(50)
    return 'left'
  },
})
