/**
 * `bench control`: what deciding and bookkeeping cost the host, and what being watched costs a step.
 *
 * Host times are medians of batches of calls, queued far enough ahead that nothing waits for the device and few enough that the launch
 * queue does not fill. What profiling and metering cost is device time, in interleaved pairs of a bare and a watched layer with the same weights.
 */
import {
  type CostByLoad,
  combine,
  describeDevice,
  Event,
  ExpertProfiler,
  Graph,
  gatedExpertCost,
  hopperTiles,
  MoELayer,
  policies,
  Router,
  SliceEnforcer,
  SliceManager,
  Stream,
  Tensor,
  tileCost,
} from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { layerOptions, usualDtype } from '../layer-options.js'
import { median } from '../median.js'
import { cellLogits, normals } from '../random.js'
import type { Shape } from '../shapes.js'
import { quantile, type RatioInterval, ratioOfMedians } from './statistics.js'

export interface ControlOptions {
  readonly device: 'cpu' | 'cuda'
  /** Shape of the layer that is stepped and watched. */
  readonly shape: Shape
  readonly tokens: number
  readonly pairs: number
  readonly onProgress: (line: string) => void
}

export interface HostCost {
  readonly what: string
  readonly medianUs: number
  readonly p99Us: number
  readonly boundUs: number | null
}

/** What watching costs, told apart: medians of a step. */
export interface WatchedParts {
  /** Host time of queueing a step. */
  readonly hostBareUs: number
  readonly hostWatchedUs: number
  /** Device time of steps behind others that were queued before them, so that the host is ahead of the first of them already. */
  readonly deviceBareUs: number
  readonly deviceWatchedUs: number
}

export interface ControlResult {
  readonly kind: 'control'
  readonly what: string
  readonly environment: Environment
  readonly host: readonly HostCost[]
  /** Host microseconds to launch one kernel: eager, and as one of `nodes` of a replayed graph. */
  readonly launch: {
    readonly eagerUs: number
    readonly graphUs: number
    readonly nodes: number
    readonly perNodeUs: number
  }
  readonly watched: {
    readonly shape: string
    readonly tokens: number
    readonly bareUs: number
    readonly watchedUs: number
    readonly addedUs: number
    readonly ratio: RatioInterval
    /** The larger of 1 % of the bare step and 0.5 µs. */
    readonly allowedUs: number
    /** Whose time it is; not in older files. */
    readonly parts?: WatchedParts
  }[]
}

/** Calls before what is timed: a layer decides for hours, and what counts is the code that the engine has compiled by then. */
const warmup = 3000

/** Microseconds of each of `rounds` calls after a warm-up, one by one. */
function each(rounds: number, call: (i: number) => void): number[] {
  for (let i = 0; i < warmup; i++) call(i)
  const times: number[] = []
  for (let i = 0; i < rounds; i++) {
    const start = performance.now()
    call(i)
    times.push((performance.now() - start) * 1e3)
  }
  return times
}

const cost = (what: string, times: readonly number[], boundUs: number | null): HostCost => ({
  what,
  medianUs: quantile(times, 0.5),
  p99Us: quantile(times, 0.99),
  boundUs,
})

function profileOf(numExperts: number, seed: number) {
  const profiler = new ExpertProfiler({ numExperts })
  const weights = normals(numExperts, seed).map((x) => Math.exp(1.5 * x))
  const total = weights.reduce((sum, x) => sum + x, 0)
  for (let step = 0; step < 80; step++) {
    profiler.record({ counts: Int32Array.from(weights, (w) => Math.round((32768 * w) / total)) })
  }
  return profiler.snapshot()
}

/** By what is moved and computed, and by the kernels' tiles: of experts of 2048 × 768. */
function decisions(numExperts: number): HostCost[] {
  const device = describeDevice('auto')
  const models = hopperTiles(device, {
    numExperts,
    linears: [
      { columns: 1536, written: 768, depth: 2048 },
      { columns: 2048, written: 2048, depth: 768 },
    ],
  })
  return [
    decision(numExperts, gatedExpertCost(device, { inputDim: 2048, hiddenDim: 768 }), 'adaptive, checked, as a plan'),
    decision(numExperts, (assignments) => tileCost(models(assignments)), 'the same by tiles, as on Hopper'),
  ]
}

function decision(numExperts: number, by: CostByLoad, how: string): HostCost {
  const manager = new SliceManager({ device: describeDevice('auto'), numExperts, cost: by, dwellSteps: 0 })
  const profiles = Array.from({ length: 16 }, (_, i) => profileOf(numExperts, i + 1))
  const times = each(2000, (i) => {
    const profile = profiles[i % profiles.length]
    if (profile) manager.update(profile)
  })
  manager.dispose()
  return cost(`a policy decision for ${numExperts} experts (${how})`, times, 50)
}

/** Going back and forth between layouts that are built. */
function switches(): HostCost {
  const enforcer = new SliceEnforcer({ device: 'auto' })
  const device = describeDevice('auto')
  const portion = Math.max(device.granularity, device.minSms)
  const manager = new SliceManager({ device, numExperts: 8, policy: policies.static(), enforcer, maxLayouts: 8 })
  manager.allocate({ name: 'aux', sms: portion })
  const times = each(1000, (i) => {
    manager.resize('aux', i % 2 === 0 ? 2 * portion : portion)
  })
  manager.dispose()
  enforcer.dispose()
  return cost('a switch between two layouts that are built (a reserved slice resized)', times, 20)
}

async function layerOf(shape: Shape, device: 'cpu' | 'cuda', more: object, weights?: MoELayer): Promise<MoELayer> {
  return MoELayer.create({
    ...layerOptions(shape, device, usualDtype(device)),
    ...(weights ? { weightsFrom: weights } : { seed: 1 }),
    ...more,
  })
}

/** Host time of queueing steps: `batch` calls, then a wait that is not counted. */
async function queueing(batches: number, batch: number, stream: Stream, call: () => void): Promise<number[]> {
  const times: number[] = []
  for (let b = 0; b < batches; b++) {
    const start = performance.now()
    for (let i = 0; i < batch; i++) call()
    times.push(((performance.now() - start) * 1e3) / batch)
    await stream.synchronize()
  }
  return times.slice(Math.min(5, batches - 1))
}

export async function controlBench(options: ControlOptions): Promise<ControlResult> {
  const { device, shape, tokens, pairs, onProgress } = options
  const host: HostCost[] = [...decisions(256), switches()]
  const small: Shape = { name: 'seed-small', hidden: 512, inter: 1024, experts: 8, topK: 2 }
  const stream = Stream.default(device)
  const [logitsHost] = cellLogits(64, small.experts, 1, 0, 1)
  if (!logitsHost) throw new RangeError('logits: expected one batch, got none')
  const logits = Tensor.from(logitsHost, [64, small.experts], { device })
  const dtype = usualDtype(device)
  const x = Tensor.randn([64, small.hidden], { dtype, device, seed: 3 })
  const out = Tensor.empty([64, small.hidden], { dtype, device })
  for (const [name, graphs, bound] of [
    ['a step from JavaScript by a graph', { captureAfter: 1 }, 10],
    ['a step from JavaScript launched one operation at a time', false, null],
  ] as const) {
    const layer = await layerOf(small, device, { graphs })
    host.push(cost(name, await queueing(40, 100, stream, () => layer.enqueue(x, { logits, out })), bound))
    layer.dispose()
  }

  // The original's claim: a launch of 5 us becomes 1 us in a graph. A kernel that does next to nothing, 64 times.
  const nodes = 64
  const router = new Router({ numExperts: 8, topK: 2, device })
  const cell = Tensor.zeros([1, 8], { dtype: 'f32', device })
  const routed = router.route(null, cell)
  const rows = Tensor.zeros([2, 16], { dtype: 'f32', device })
  const target = Tensor.zeros([1, 16], { dtype: 'f32', device })
  const body = () => {
    for (let i = 0; i < nodes; i++) combine(rows, routed, { out: target })
  }
  body()
  const eager = await queueing(60, 1, stream, body)
  const graph = Graph.capture(stream, body)
  const replay = await queueing(60, 4, stream, () => graph.launch(stream))
  const launch = {
    eagerUs: median(eager) / nodes,
    graphUs: median(replay),
    nodes,
    perNodeUs: median(replay) / nodes,
  }
  graph.dispose()
  for (const tensor of [x, out, logits, cell, rows, target, routed, router]) tensor.dispose()
  for (const line of host) onProgress(`${line.what}: ${line.medianUs.toFixed(2)} us`)
  onProgress(`launch: ${launch.eagerUs.toFixed(2)} us eager, ${launch.perNodeUs.toFixed(3)} us a node by a graph`)

  const watched: ControlResult['watched'][number][] = []
  for (const [s, t] of [
    [small, 64],
    [shape, tokens],
  ] as const)
    watched.push(await watching(s, t, device, pairs))
  for (const w of watched) {
    onProgress(`watched ${w.shape} ${w.tokens}: ${w.bareUs.toFixed(2)} -> ${w.watchedUs.toFixed(2)} us`)
  }
  return {
    kind: 'control',
    what: 'host time of decisions, switches and steps; device time of a profiled and metered step beside a bare one, in interleaved pairs',
    environment: environment(device),
    host,
    launch,
    watched,
  }
}

async function watching(shape: Shape, tokens: number, device: 'cpu' | 'cuda', pairs: number) {
  const bare = await layerOf(shape, device, { graphs: { captureAfter: 1 } })
  const seen = await layerOf(shape, device, { graphs: { captureAfter: 1 }, profiler: true, energy: true }, bare)
  const stream = Stream.default(device)
  const [logitsHost] = cellLogits(tokens, shape.experts, 1, 0, 5)
  if (!logitsHost) throw new RangeError('logits: expected one batch, got none')
  const logits = Tensor.from(logitsHost, [tokens, shape.experts], { device })
  const x = Tensor.randn([tokens, shape.hidden], { dtype: usualDtype(device), device, seed: 3 })
  const out = Tensor.empty([tokens, shape.hidden], { dtype: x.dtype, device })
  const [start, end] = [Event.create(device), Event.create(device)]
  const batch = 20
  /** @param lead steps that are queued before those that are timed */
  const time = async (layer: MoELayer, lead: number) => {
    for (let i = 0; i < lead; i++) layer.enqueue(x, { logits, out })
    start.record(stream)
    const begin = performance.now()
    for (let i = 0; i < batch; i++) layer.enqueue(x, { logits, out })
    const hostUs = ((performance.now() - begin) * 1e3) / batch
    end.record(stream)
    await stream.synchronize()
    return { us: (start.elapsedMs(end) * 1e3) / batch, hostUs }
  }
  for (let i = 0; i < 10; i++) for (const layer of [bare, seen]) await time(layer, 0)
  const a: number[] = []
  const b: number[] = []
  const host: [bare: number[], seen: number[]] = [[], []]
  const behind: [bare: number[], seen: number[]] = [[], []]
  const once = async (which: 0 | 1) => {
    const layer = which === 0 ? bare : seen
    const { us, hostUs } = await time(layer, 0)
    ;(which === 0 ? a : b).push(us)
    host[which].push(hostUs)
    behind[which].push((await time(layer, batch / 2)).us)
  }
  for (let i = 0; i < pairs; i++) {
    // Who goes first takes turns.
    await once(i % 2 === 0 ? 0 : 1)
    await once(i % 2 === 0 ? 1 : 0)
  }
  seen.dispose()
  bare.dispose()
  for (const each of [x, out, logits, start, end]) each.dispose()
  const bareUs = median(a)
  const watchedUs = median(b)
  return {
    shape: shape.name,
    tokens,
    bareUs,
    watchedUs,
    addedUs: watchedUs - bareUs,
    ratio: ratioOfMedians(b, a),
    allowedUs: Math.max(0.01 * bareUs, 0.5),
    parts: {
      hostBareUs: median(host[0]),
      hostWatchedUs: median(host[1]),
      deviceBareUs: median(behind[0]),
      deviceWatchedUs: median(behind[1]),
    },
  }
}
