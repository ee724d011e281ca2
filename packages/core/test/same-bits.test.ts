/**
 * The same bits, whatever runs them: random strategies, policies, layouts, streams, graphs, resized and migrated on the way, against one grouped
 * launch after the other. Each plan proves by traces and statistics that its lanes and graphs were really used; mutants show that the
 * comparison can fail. `NEXUS_PLANS` is the number of plans, `NEXUS_SEED` another choice of them.
 */
import * as fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  auxSlice,
  type DeviceName,
  describeDevice,
  type LaneTrace,
  MoELayer,
  type MoELayerOptions,
  SliceManager,
  Stream,
  Tensor,
} from '../src/index.js'
import { plans, type RandomPlan, shapes, tokenCounts } from './plans.js'

/** One layer shape: the reference, its inputs, and what fused eager steps make of them. */
interface Case {
  readonly reference: MoELayer
  readonly options: MoELayerOptions
  readonly inputs: ReadonlyMap<number, { readonly x: Tensor; readonly logits: Tensor }>
  readonly expected: ReadonlyMap<string, { readonly bytes: Uint8Array; readonly counts: Int32Array }>
}

const bytesOf = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** The comparison of this test: byte for byte. */
export function expectSameBytes(got: ArrayBufferView, expected: Uint8Array, what: string): void {
  const bytes = bytesOf(got)
  if (bytes.length !== expected.length) throw new Error(`${what}: ${bytes.length} bytes, expected ${expected.length}`)
  const at = bytes.findIndex((byte, i) => byte !== expected[i])
  if (at >= 0) throw new Error(`${what}: byte ${at} is ${bytes[at]}, expected ${expected[at]}`)
}

async function makeCase(shape: MoELayerOptions, device: DeviceName): Promise<Case> {
  const options = { ...shape, device, seed: 11 }
  const reference = await MoELayer.create(options)
  const inputs = new Map<number, { x: Tensor; logits: Tensor }>()
  const expected = new Map<string, { bytes: Uint8Array; counts: Int32Array }>()
  for (const tokens of tokenCounts) {
    const x = Tensor.randn([tokens, shape.inputDim], { dtype: reference.dtype, device, seed: tokens })
    const logits = Tensor.randn([tokens, shape.numExperts], { device, seed: 100 + tokens, scale: 2 })
    inputs.set(tokens, { x, logits })
    for (const given of [false, true]) {
      const { output, stats } = await reference.forward(x, given ? { logits } : {})
      expected.set(`${tokens} ${given}`, { bytes: bytesOf(await output.toArray()), counts: stats.counts })
      output.dispose()
    }
  }
  return { reference, options, inputs, expected }
}

interface Tally {
  plans: number
  /** Proof steps by the strategy that ran them. */
  strategies: Record<string, number>
  graphs: number
  layouts: number
  migrations: number
}

onEachDevice('same bits', (device) => {
  const runs = Number(process.env.NEXUS_PLANS ?? (device === 'cpu' ? 500 : 200))
  const cases: Case[] = []

  beforeAll(async () => {
    for (const shape of shapes) cases.push(await makeCase(shape, device))
  })
  afterAll(() => {
    for (const { reference, inputs } of cases) {
      reference.dispose()
      for (const { x, logits } of inputs.values()) for (const tensor of [x, logits]) tensor.dispose()
    }
  })

  test(`${runs} random plans are byte-identical to fused eager`, { timeout: 600_000 }, async () => {
    const tally: Tally = { plans: 0, strategies: {}, graphs: 0, layouts: 0, migrations: 0 }
    const property = fc.asyncProperty(plans, async (plan) => {
      const found = cases[plan.shape]
      if (found === undefined) throw new RangeError(`no shape ${plan.shape}`)
      await tryPlan(plan, found, device, tally)
      tally.plans++
    })
    await fc.assert(property, { numRuns: runs, seed: Number(process.env.NEXUS_SEED ?? 20261122) })
    expect(tally.plans).toBe(runs)
    // Every strategy was really run, by lanes that computed and by graphs that replayed, and things moved on the way.
    for (const strategy of ['fused', 'tiered', 'streams', 'cooperative']) {
      expect(tally.strategies[strategy] ?? 0, strategy).toBeGreaterThan(runs / 20)
    }
    expect(tally.graphs).toBeGreaterThan(runs / 4)
    expect(tally.layouts).toBeGreaterThan(runs / 8)
    expect(tally.migrations).toBeGreaterThan(runs / 8)
  })
})

/** Runs one plan; throws where a byte differs, or where it was not run as it says. */
async function tryPlan(plan: RandomPlan, on: Case, device: DeviceName, tally: Tally): Promise<void> {
  const { strategy } = plan
  const sliced = strategy !== 'fused' && strategy !== 'streams'
  const manager = sliced
    ? new SliceManager({
        device: describeDevice(device),
        numExperts: on.options.numExperts,
        policy: plan.policy,
        slices: plan.slices,
        dwellSteps: 2,
      })
    : null
  if (manager !== null && plan.aux && on.options.shared) {
    manager.allocate({ name: auxSlice, sms: Math.max(manager.device.granularity, manager.device.minSms) })
  }
  await using layer = await MoELayer.create({
    ...on.options,
    weightsFrom: on.reference,
    strategy: strategy as 'auto',
    ...(manager && { slices: { manager, updateEverySteps: plan.updateEverySteps } }),
    ...((strategy === 'streams' || strategy === 'auto') && {
      streams: { count: plan.streams, assignment: plan.assignment },
    }),
    ...(plan.captureAfter !== null && { graphs: { captureAfter: plan.captureAfter } }),
    trace: strategy !== 'fused',
  })
  using _manager = manager
  const startKey = layer.plan.slices?.key
  using elsewhere = Stream.create({ device })
  const queue = (step: Step) => queueStep(layer, on, { ...step, stream: step.elsewhere ? elsewhere : null })
  // Changed while steps are under way: nothing is waited for before all of them are queued.
  const before = plan.before.map(queue)
  if (plan.midway.early && manager !== null) change(plan, manager)
  const between = plan.before.map(queue)
  for (const check of [...before, ...between]) await check()
  await prove(plan, layer, on, tally)
  if (!plan.midway.early && manager !== null) change(plan, manager)
  const after = plan.after.map(queue)
  for (const check of after) await check()
  await prove(plan, layer, on, tally)
  const { slices, strategy: stats } = layer.performanceStats()
  if (slices !== null && slices.plan.key !== startKey) tally.layouts++
  if ((slices?.manager.migrations ?? 0) > 0) tally.migrations++
  expect(stats?.lastFailure ?? null).toBeNull()
}

/** Midway: a slice is reserved and resized, an expert migrates into it. */
function change({ midway: { portions, resize, migrate } }: RandomPlan, manager: SliceManager): void {
  const { device } = manager
  const portion = Math.max(device.granularity, device.minSms)
  if (portions === null || device.sms < (portions + 4) * portion) return
  manager.allocate({ name: 'reserved', sms: portions * portion })
  if (migrate !== null && migrate < manager.numExperts) manager.migrate(migrate, 'reserved')
  if (resize) manager.resize('reserved', (portions + 1) * portion)
}

type Step = RandomPlan['before'][number]

/** Queues a step; the function that comes back waits for it and compares. */
function queueStep(
  layer: MoELayer,
  on: Case,
  step: Omit<Step, 'elsewhere'> & { readonly stream: Stream | null },
): () => Promise<Int32Array> {
  const { how, logits: given, stream } = step
  const tokens = tokenCounts[step.tokens] ?? 1
  const input = on.inputs.get(tokens)
  const expected = on.expected.get(`${tokens} ${given}`)
  if (input === undefined || expected === undefined) throw new RangeError(`no input of ${tokens} tokens`)
  const options = { ...(given && { logits: input.logits }), ...(stream && { stream }) }
  const what = `${how} of ${tokens} tokens as ${layer.plan.strategy}`
  if (how === 'enqueue') {
    const output = layer.enqueue(input.x, options)
    return async () => {
      using _ = output
      expectSameBytes(await output.toArray(), expected.bytes, what)
      return expected.counts
    }
  }
  const result = layer.forward(input.x, options)
  return async () => {
    const { output, stats } = await result
    using _ = output
    expectSameBytes(await output.toArray(), expected.bytes, what)
    expect(stats.counts).toEqual(expected.counts)
    return expected.counts
  }
}

/** Steps of one kind until it is replayed, if it is to be: then one whose lanes and graph are looked at. */
async function prove(plan: RandomPlan, layer: MoELayer, on: Case, tally: Tally): Promise<void> {
  const { proof, captureAfter, strategy } = plan
  const at = tokenCounts.indexOf(proof)
  const hits = () => layer.performanceStats().graphs?.hits ?? 0
  for (let attempt = 0; ; attempt++) {
    if (strategy !== 'fused') await layer.trace()
    const before = hits()
    const counts = await queueStep(layer, on, { tokens: at, how: 'enqueue', logits: false, stream: null })()
    if (captureAfter !== null && hits() === before) {
      // A policy that changes the layout at every step lets hardly any of them come to its graph.
      if (attempt > (plan.policy.name === 'restless' ? 1000 : 30))
        throw new Error(`no graph after ${attempt} steps: ${layer.performanceStats().graphs?.lastFallback}`)
      continue
    }
    if (captureAfter !== null) tally.graphs++
    const trace = strategy === 'fused' ? { strategy: 'fused' as const, lanes: [] } : await layer.trace()
    tally.strategies[trace.strategy] = (tally.strategies[trace.strategy] ?? 0) + 1
    if (strategy !== 'auto') expect(trace.strategy).toBe(strategy)
    checkLanes(trace, counts)
    return
  }
}

/** Lanes whose experts had tokens computed, and no other; slices kept to SMs of their own. */
function checkLanes({ strategy, lanes }: LaneTrace, counts: Int32Array): void {
  const seen = new Set<number>()
  for (const { name, experts, units } of lanes) {
    const rows = experts.reduce((sum, expert) => sum + (counts[expert] ?? 0), 0)
    expect(units.length > 0, `${strategy}: lane ${name} had ${rows} rows, and ran on ${units.join(' ')}`).toBe(rows > 0)
    if (strategy !== 'tiered') continue
    for (const unit of units) {
      expect(seen.has(unit), `unit ${unit} computed for ${name} and another slice`).toBe(false)
      seen.add(unit)
    }
  }
  expect(lanes.flatMap(({ experts }) => experts).length).toBe(strategy === 'fused' ? 0 : counts.length)
}
