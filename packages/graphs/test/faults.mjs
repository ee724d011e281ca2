// A cache of real graphs among faults; run by faults.test.ts.

import { capturePolicies, GraphCache } from '@nexus/graphs'
import { Graph, Stream, Tensor } from '@nexus/native'
import {
  arm,
  backTo,
  caught,
  device,
  disarm,
  fate,
  given,
  print,
  run,
  steady,
  timed,
} from '../../core/test/faults/child.mjs'
import { Router } from '../../router-kernels/dist/index.js'

/** A step that routes: by its graph, or eagerly. */
function make(options) {
  const stream = Stream.create({ device })
  const router = new Router({ numExperts: 8, topK: 2, device, stream })
  const logits = Tensor.randn([16, 8], { dtype: 'f32', device, stream, seed: 3 })
  const out = router.route(null, logits, { stream })
  const cache = new GraphCache({ policy: capturePolicies.always(), ...options })
  const step = () => {
    router.route(null, logits, { stream, out })
  }
  const go = (key = 'route') =>
    cache.run(key, { eager: step, capture: () => Graph.capture(stream, step), replay: (graph) => graph.launch() })
  const dispose = () => {
    for (const each of [cache, out, logits, stream]) each.dispose()
    router.dispose?.()
  }
  return { stream, logits, out, cache, step, go, dispose }
}

/** New logits, one run, and whether the weights are those of an eager step. */
async function right({ logits, out, step, go }, seed) {
  await logits.write(Float32Array.from({ length: 128 }, (_, k) => Math.sin(k * (seed + 1))))
  const { mode, reason } = go()
  const weights = String(await out.weights.toArray())
  step()
  return { mode, reason, right: weights === String(await out.weights.toArray()) }
}

await run({
  // A fault at the second step, which records; the later ones.
  async recording() {
    const life = async (fault) => {
      const made = make()
      const seen = { modes: '', wrong: 0, errors: [], capturing: 0 }
      for (let i = 0; i < 24; i++) {
        if (i === 1) arm(fault)
        const error = await caught(async () => {
          const { mode, right: fine } = await right(made, i)
          seen.modes += mode[0]
          seen.wrong += fine ? 0 : 1
        })
        if (error !== null) seen.errors.push(error)
      }
      disarm()
      const { fallbacks, lastFallback, graphs } = made.cache.stats()
      made.dispose()
      return { ...seen, fallbacks, lastFallback, graphs }
    }
    await life('none')
    const before = await steady()
    return { ...(await life(given.fault)), leaked: await backTo(before) }
  },

  // Many keys under a small budget, with faults all the time.
  async storm() {
    const life = async (rounds) => {
      const made = make({ maxGraphs: 3 })
      const codes = new Set()
      let wrong = 0
      const points = ['graph.capture', 'graph.instantiate', 'graph.launch', 'buffer.allocate']
      for (let i = 0; i < rounds; i++) {
        if (i % 3 === 0) arm(`${points[(i / 3) % points.length]}:1:${i % 2 === 0 ? 'oom' : 'error'}`)
        const error = await caught(() => made.go(`key ${(i * 7) % 11}`))
        disarm()
        if (error !== null) codes.add(error.code)
        wrong += (await right(made, i)).right ? 0 : 1
      }
      const { graphs, evictions, captures } = made.cache.stats()
      made.dispose()
      return { codes: [...codes].sort(), wrong, few: graphs <= 3, evicted: evictions > 0, captured: captures > 0 }
    }
    await life(30)
    const before = await steady()
    return { ...(await life(300)), leaked: await backTo(before) }
  },

  async broken() {
    const made = make()
    for (let i = 0; i < 4; i++) await right(made, i)
    arm('graph.launch:1:device')
    const first = await caught(() => made.go())
    disarm()
    const second = await caught(() => made.go())
    const capture = await caught(() => made.go('another'))
    const read = await caught(() => made.out.weights.toArray())
    const disposal = await caught(() => made.dispose())
    return { first, second, capture, read, disposal, after: await caught(() => made.go()) }
  },

  async hang() {
    const made = make()
    const other = make()
    for (let i = 0; i < 4; i++) await right(made, i)
    arm('graph.launch:1:hang')
    const launchMs = await timed(() => made.go())
    disarm()
    const read = made.out.weights.toArray()
    read.catch(() => undefined)
    const pending = await fate(read, 200)
    const beside = (await right(other, 1)).right
    const disposeMs = await timed(() => made.dispose())
    print({ quick: launchMs < 1000 && disposeMs < 1000, pending, beside, after: await caught(() => made.go()) })
    process.exit(0)
  },
})
