// Both schedulers on a GPU: real slices, real joules, and the bits of the undivided layers.
import { EnergyMonitor } from '@nexus/energy'
import { type Stream, Tensor } from '@nexus/native'
import { describeDevice } from '@nexus/slices'
import { describe, expect, it } from 'vitest'
import { energyFirst } from '../src/energy-first.js'
import { latencyBounded } from '../src/latency-bounded.js'
import { makeLayer, wholeStep } from '../src/layer.js'
import { skipGpu } from './support/machine.js'

const device = 'cuda:0'
const shape = { numExperts: 16, topK: 2, inputDim: 256, hiddenDim: 512 } as const

describe.skipIf(skipGpu)(`on a GPU${skipGpu ? ' (CUDA cannot be used here)' : ''}`, () => {
  it('energy first: every layout is metered or says why not, and the chosen one has the same bits', async () => {
    const { sms, granularity } = describeDevice(device)
    const idleSms = [0.25, 0.5].map((part) => Math.floor((part * sms) / granularity) * granularity)
    const layer = makeLayer(device, shape)
    const x = Tensor.randn([64, shape.inputDim], { device, dtype: layer.dtype, seed: 3 })
    const monitor = new EnergyMonitor({ device })
    const aims = { monitor, idleSms, boundMs: 1000, windowMs: 1500 }
    const { trials, chosen, step, plan, dispose } = await energyFirst({ ...layer, x }, aims)
    for (const { joules, reason } of trials) expect(joules === null ? reason : joules).toBeTruthy()
    const known = trials.filter(({ joules }) => joules !== null)
    if (known.length > 0) expect(chosen.joules).toBe(Math.min(...known.map(({ joules }) => joules ?? Number.NaN)))
    const worked = plan.slices.filter(({ experts }) => experts.length > 0)
    expect(worked.map(({ enforcement }) => enforcement)).toEqual(worked.map(() => 'hardware'))
    using whole = wholeStep(layer, x)
    using sliced = step()
    expect(await sliced.toArray()).toEqual(await whole.toArray())
    dispose()
    for (const part of [monitor, x, layer]) part.dispose()
  })

  it('latency bounded: the same bits through resizes beside a busy neighbour', async () => {
    const [decode, prefill] = [makeLayer(device, shape), makeLayer(device, { ...shape, seed: 5 })]
    const many = Tensor.randn([2048, shape.inputDim], { device, dtype: prefill.dtype, seed: 6 })
    const routed = prefill.router.route(many)
    const tenants = [
      { name: 'bounded', enqueue: (stream: Stream, x: Tensor) => wholeStep(decode, x, stream) },
      { name: 'prefill', experts: prefill.experts, x: many, routed },
    ]
    const scheduler = latencyBounded(device, shape.numExperts, tenants, { boundMs: 1e-6, windowSteps: 1 })
    const seen = new Set<number>()
    for (let seed = 0; seed < 24; seed++) {
      for (let i = 0; i < 4; i++) scheduler.tenant('prefill').enqueue().dispose()
      using x = Tensor.randn([8, shape.inputDim], { device, dtype: decode.dtype, seed })
      using y = (await scheduler.step(x)) as Tensor
      using whole = wholeStep(decode, x)
      expect(await y.toArray()).toEqual(await whole.toArray())
      seen.add(scheduler.state().sms)
    }
    expect(seen.size).toBeGreaterThan(3)
    scheduler.dispose()
    for (const part of [many, routed, decode, prefill]) part.dispose()
  })
})
