// Layers in company: with a manager that they share, as tenants of a schedule, in workers, beside a meter, and with whoever disposes of them
// at a bad time.
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, SHARE_ENV, Worker, workerData } from 'node:worker_threads'
import {
  describeDevice,
  EnergyMonitor,
  MoELayer,
  policies,
  SliceEnforcer,
  SliceManager,
  SlicePartition,
  Stream,
  schedule,
} from '@nexus/core'
import * as child from './child.mjs'
import { layersOn, partitions } from './layers.mjs'

const { arm, backTo, caught, disarm, fate, sleep, steady, timed } = child
const { device, given, scenario } = isMainThread ? child : workerData
const { shape, input, expectedOf, right, same } = layersOn(device)
const description = describeDevice(device)
const portion = Math.ceil(description.minSms / description.granularity) * description.granularity

/** A layer that is busy until its worker is terminated. */
async function inWorker() {
  const layer = await MoELayer.create({ ...shape, ...given.options })
  const x = input(64)
  await layer.forward(x)
  if (given.hang) arm('layer.step:1:hang') // the worker's environment is the process's: SHARE_ENV
  for (let i = 0; i < 3; i++) void layer.forward(x).catch(() => undefined)
  parentPort.postMessage('running')
  const more = () => {
    if (!given.hang) void layer.forward(x).catch(() => undefined)
    setTimeout(more, 1)
  }
  more()
}

const scenarios = {
  // Two layers follow one manager; building what one of them needs fails, and the device has no memory for it.
  async sharedManager() {
    const x = input(16)
    const expected = await expectedOf(x)
    const life = async (fault) => {
      const manager = new SliceManager({ device: description, numExperts: 8, policy: policies.static() })
      const options = {
        ...shape,
        strategy: 'tiered',
        graphs: { captureAfter: 1 },
        slices: { manager, updateEverySteps: 1 },
      }
      const [first, second] = [await MoELayer.create(options), await MoELayer.create(options)]
      let wrong = 0
      const both = async (steps) => {
        for (let i = 0; i < steps; i++) {
          wrong += (await right(first, x, expected)) ? 0 : 1
          wrong += (await right(second, x, expected)) ? 0 : 1
        }
      }
      await both(3)
      arm(fault)
      manager.allocate({ name: 'other', sms: portion })
      await both(4)
      disarm()
      const failures = [first, second].map((layer) => layer.performanceStats().strategy.lastFailure?.code ?? null)
      await both(24)
      // Both are where the manager is.
      const caughtUp = [first, second].every(
        ({ plan }) => plan.slices.key === manager.plan.key && /^tiered/.test(plan.reason),
      )
      first.dispose()
      for (let i = 0; i < 4; i++) wrong += (await right(second, x, expected)) ? 0 : 1
      for (const each of [second, manager]) each.dispose()
      return { wrong, failures, caughtUp }
    }
    await life('none')
    const before = await steady(partitions)
    return { ...(await life(given.fault)), leaked: await backTo(before, partitions) }
  },

  // Hundreds of resizes, every seventh of which cannot be built.
  async resizes() {
    const x = input(16)
    const expected = await expectedOf(x)
    const life = async (rounds) => {
      const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
      const manager = new SliceManager({ device: description, numExperts: 8, slices: 2, enforcer, maxLayouts: 4 })
      const layer = await MoELayer.create({ ...shape, strategy: 'tiered', slices: { manager, updateEverySteps: 1 } })
      manager.allocate({ name: 'other', sms: portion })
      const sizes = Math.floor(description.sms / portion) - 1
      const counts = { done: 0, failed: 0, wrong: 0, kept: 0, most: 0, codes: {} }
      for (let i = 0; i < rounds; i++) {
        const before = manager.plan
        const sms = portion * (1 + ((i * 11) % Math.max(1, sizes)))
        if (i % 7 === 6) arm('partition.create:1:oom')
        const error = await caught(() => manager.resize('other', sms))
        disarm()
        if (error === null) counts.done++
        else {
          counts.failed++
          counts.codes[error.code] = (counts.codes[error.code] ?? 0) + 1
          if (manager.plan === before) counts.kept++ // nothing has changed
        }
        if (i % 5 === 0) counts.wrong += (await right(layer, x, expected)) ? 0 : 1
        counts.most = Math.max(counts.most, enforcer.stats().layouts)
        if (i % 50 === 49) await Stream.default(device).synchronize()
      }
      for (const each of [layer, manager, enforcer]) each.dispose()
      return counts
    }
    await life(14)
    const before = await steady(partitions)
    const { most, ...counts } = await life(given.rounds)
    return { ...counts, layouts: most, leaked: await backTo(before, partitions) }
  },

  // More than there is, in every place where it can be asked for.
  async tooLarge() {
    const { sms, granularity } = description
    const layer = await MoELayer.create({ ...shape, strategy: 'tiered', slices: { updateEverySteps: 1 } })
    const x = input(16)
    await layer.forward(x).then(({ output }) => output.dispose())
    const before = await steady(partitions)
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = new SliceManager({ device: description, numExperts: 8, enforcer })
    const larger = {
      ...description,
      sms: sms + granularity,
      bandwidth: [{ sms: 1, perSecond: 1 }],
      rate: [{ sms: 1, perSecond: 1 }],
    }
    const errors = {
      allocate: await caught(() => manager.allocate({ name: 'whole', sms: sms + granularity })),
      everything: await caught(() => manager.allocate({ name: 'whole', sms })),
      build: await caught(() => SlicePartition.build(device, [{ name: 'all', sms: sms + granularity }])),
      // A description that promises more than the device has.
      promised: await caught(() => new SliceManager({ device: larger, numExperts: 8, enforcer })),
      total: await caught(() => MoELayer.create({ ...shape, slices: { total: sms + 1 } })),
      strange: await caught(() => {
        const other = new SliceManager({ device: larger, numExperts: 8 })
        return MoELayer.create({ ...shape, strategy: 'tiered', slices: { manager: other } })
      }),
    }
    for (const each of [manager, enforcer]) each.dispose()
    const leaked = await backTo(before, partitions)
    const fine = await caught(() => layer.forward(x))
    layer.dispose()
    return { sms, granularity, errors, leaked, fine }
  },

  // Tenants of a schedule: one fails, or the device under both.
  async tenants() {
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = new SliceManager({ device: description, numExperts: 8, slices: 1, enforcer })
    for (const name of ['a', 'b']) manager.allocate({ name, sms: portion })
    const layers = [await MoELayer.create(shape), await MoELayer.create(shape)]
    const x = input(16)
    const steps = schedule(manager.plan, {
      partition: enforcer.partition(manager.plan),
      tenants: [
        { name: 'a', slice: 'a', layer: layers[0], x },
        { name: 'b', slice: 'b', layer: layers[1], x },
      ],
    })
    const errorsOf = async () => {
      const { tenants } = await steps.run()
      for (const { value } of tenants) value?.dispose()
      return tenants.map(({ error }) => error?.code ?? null)
    }
    const before = await errorsOf()
    arm(given.fault)
    const during = await errorsOf()
    disarm()
    const after = await errorsOf().catch((error) => [error.code])
    const disposal = await caught(() => {
      for (const each of [steps, ...layers, manager, enforcer]) each.dispose()
    })
    return { before, during, after, disposal }
  },

  // A worker is terminated in the middle of its steps, or of one that never ends; the main thread's layer does not notice.
  async worker() {
    const layer = await MoELayer.create(shape)
    const x = input(16)
    const expected = await expectedOf(x)
    const round = async () => {
      const worker = new Worker(fileURLToPath(import.meta.url), {
        workerData: { device, given, scenario: 'inWorker' },
        env: given.hang ? SHARE_ENV : undefined,
        execArgv: [],
      })
      await once(worker, 'message')
      await sleep(Math.random() * 10)
      const ms = await timed(() => worker.terminate())
      disarm()
      return ms
    }
    await round()
    await right(layer, x, expected)
    const before = given.hang ? null : await steady(partitions)
    let slowest = 0
    let wrong = 0
    for (let i = 0; i < (given.hang ? 1 : 5); i++) {
      slowest = Math.max(slowest, await round())
      wrong += (await right(layer, x, expected)) ? 0 : 1
    }
    // A step that never ends keeps what it uses.
    const leaked = before && (await backTo(before, partitions))
    layer.dispose()
    return { quick: slowest < 2000, wrong, leaked }
  },

  // The meter of a running layer fails: its figures are unknown and say why, the steps are as before.
  async meter() {
    const say = (...lines) => writeFileSync(`${process.env.NEXUS_NVML_PATH}.control`, `${lines.join('\n')}\n`)
    const usual = ['power 0 100000', 'tick_ms 1']
    say(...usual)
    const x = input(16)
    const expected = await expectedOf(x)
    const life = async () => {
      const monitor = new EnergyMonitor({ device: given.gpu, intervalMs: 1, watchdogMs: 50 })
      const layer = await MoELayer.create({
        ...shape,
        strategy: 'tiered',
        slices: { updateEverySteps: 1, policy: policies.adaptive() },
        graphs: { captureAfter: 1 },
        energy: monitor,
      })
      let wrong = 0
      let slowest = 0
      const work = async (until) => {
        const deadline = performance.now() + 5000
        while (performance.now() < deadline) {
          slowest = Math.max(
            slowest,
            await timed(async () => {
              wrong += (await right(layer, x, expected)) ? 0 : 1
            }),
          )
          if (until(layer.performanceStats().energy)) return true
        }
        return false
      }
      const measured = await work(({ joules }) => joules !== null)
      say(...usual, ...given.orders)
      const vanished = await work(({ joules }) => joules === null)
      const { reason } = layer.performanceStats().energy
      await work(() => performance.now() % 50 < 1)
      const { lastFailure } = layer.performanceStats().strategy
      say(...usual)
      const back = await work(({ joules }) => joules !== null)
      for (const each of [layer, monitor]) each.dispose()
      return { measured, vanished, reason, back, lastFailure, wrong, unhindered: slowest < 1000 }
    }
    await life()
    const before = await steady(partitions)
    return { ...(await life()), leaked: await backTo(before, partitions) }
  },

  // NVML hangs for good: disposing does not wait for it, and the process ends.
  async meterHangs() {
    const monitor = new EnergyMonitor({ device: given.gpu, intervalMs: 1, watchdogMs: 50 })
    const layer = await MoELayer.create({ ...shape, energy: monitor })
    const x = input(16)
    await sleep(100)
    let slowest = 0
    for (let i = 0; i < 20; i++) {
      slowest = Math.max(slowest, await timed(() => layer.forward(x).then(({ output }) => output.dispose())))
    }
    const { joules, reason } = layer.performanceStats().energy
    const disposeMs = await timed(() => {
      for (const each of [layer, monitor]) each.dispose()
    })
    child.print({
      joules,
      told: typeof reason === 'string' && reason !== '',
      quick: slowest < 1000 && disposeMs < 1000,
    })
    process.exit(0)
  },

  // Disposed of by its own policy, by the one who waits for it, between recording and replay: at the worst times.
  async disposedInside() {
    const x = input(16)
    const life = async (when) => {
      let layer = null
      let decisions = 0
      const good = policies.proportional()
      const policy = {
        name: 'suicidal',
        decide(snapshot) {
          if (decisions++ === when) layer?.dispose()
          return good.decide(snapshot)
        },
      }
      layer = await MoELayer.create({
        ...shape,
        strategy: 'tiered',
        slices: { policy, updateEverySteps: 1 },
        graphs: { captureAfter: 1 },
      })
      const outcomes = new Set()
      for (let i = 0; i < 12; i++) {
        const error = await caught(async () => {
          const { output } = await layer.forward(x)
          output.dispose()
        })
        outcomes.add(error?.code ?? (error === null ? 'ok' : error.name))
      }
      const dead = await caught(() => layer.enqueue(x).dispose())
      layer.dispose()
      return { outcomes: [...outcomes], disposed: layer.disposed, dead: dead?.code ?? null }
    }
    await life(-1)
    const before = await steady(partitions)
    const result = await life(2)
    return { ...result, leaked: await backTo(before, partitions) }
  },

  // Many in flight, disposed of at once, not waited for.
  async disposedInFlight() {
    const x = input(200)
    const expected = await expectedOf(x)
    const life = async () => {
      const layer = await MoELayer.create({ ...shape, ...given.options })
      for (let i = 0; i < 4; i++) layer.enqueue(x).dispose()
      const flying = Array.from({ length: 8 }, () => layer.forward(x))
      layer.dispose()
      const fates = await Promise.all(flying.map((each) => fate(each, 10_000)))
      let wrong = 0
      for (const each of flying) {
        const { output } = await each
        wrong += (await same(output, expected)) ? 0 : 1
      }
      return { fates: [...new Set(fates)], wrong }
    }
    await life()
    const before = await steady(partitions)
    return { ...(await life()), leaked: await backTo(before, partitions) }
  },
}

if (isMainThread) await child.run(scenarios)
else if (scenario === 'inWorker') await inWorker()
