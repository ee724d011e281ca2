/** Several layers at once as tenants of one plan, each in its slice. */
import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import {
  describeDevice,
  isTensor,
  MoELayer,
  type MoELayerOptions,
  SliceEnforcer,
  SliceManager,
  Stream,
  schedule,
  Tensor,
} from '../src/index.js'

const disposeOf = (value: unknown): void => {
  if (!isTensor(value)) throw new TypeError('expected a step to have returned a tensor')
  value.dispose()
}

onEachDevice('schedule', (device) => {
  const decodeShape: MoELayerOptions = { inputDim: 16, hiddenDim: 24, numExperts: 8, topK: 2, device }
  const prefillShape: MoELayerOptions = { inputDim: 32, hiddenDim: 64, numExperts: 4, topK: 1, device }

  /** A plan with two reserved slices, built. */
  function twoSlices() {
    const description = describeDevice(device)
    const portion = Math.max(description.granularity, description.minSms)
    const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
    const manager = new SliceManager({ device: description, numExperts: 0, enforcer })
    manager.allocate({ name: 'decode', sms: 2 * portion })
    manager.allocate({ name: 'prefill', sms: 4 * portion, priority: 1 })
    const { plan } = manager
    const dispose = (): void => {
      manager.dispose()
      enforcer.dispose()
    }
    return { plan, partition: enforcer.partition(plan), [Symbol.dispose]: dispose }
  }

  async function layers(extra: Partial<MoELayerOptions> = {}) {
    const decode = await MoELayer.create({ ...decodeShape, ...extra })
    const prefill = await MoELayer.create({ ...prefillShape, ...extra })
    const few = Tensor.randn([7, 16], { device, dtype: decode.dtype, seed: 1 })
    const many = Tensor.randn([300, 32], { device, dtype: prefill.dtype, seed: 2 })
    const all = [decode, prefill, few, many]
    return { decode, prefill, few, many, [Symbol.dispose]: () => all.forEach((each) => void each.dispose()) }
  }

  test.each([
    ['plain', {}],
    ['graphs', { graphs: { captureAfter: 1 } }],
    ['auto', { slices: { updateEverySteps: 2 } }],
  ] as const)('%s layers: one step of all, each in its slice, the same bits as alone', async (_, extra) => {
    using two = twoSlices()
    using made = await layers(extra)
    const { decode, prefill, few, many } = made
    const alone = [await decode.forward(few), await prefill.forward(many)]
    const expected = await Promise.all(alone.map(({ output }) => output.toArray()))
    using out = Tensor.empty([300, 32], { device, dtype: prefill.dtype })
    using steps = schedule(two.plan, {
      partition: two.partition,
      tenants: [
        { name: 'decode', layer: decode, x: few },
        { layer: prefill, x: many, out, slice: 'prefill' },
      ],
    })
    for (let i = 0; i < 4; i++) {
      const { tenants } = await steps.run()
      expect(tenants.map(({ error }) => error)).toEqual([null, null])
      expect(tenants.map(({ slice }) => slice)).toEqual(['decode', 'prefill'])
      const first = tenants[0]?.value as Tensor
      expect(await first.toArray()).toEqual(expected[0])
      expect(await out.toArray()).toEqual(expected[1])
      first.dispose()
    }
    const widths = steps.stats().tenants.map(({ width }) => width)
    expect(widths[0]).toBe(two.plan.slices.find(({ name }) => name === 'decode')?.grantedSms)
    expect(widths[1]).toBe(two.plan.slices.find(({ name }) => name === 'prefill')?.grantedSms)
    if ('graphs' in extra) expect(decode.performanceStats().graphs?.hits).toBeGreaterThan(1)
    for (const { output } of alone) output.dispose()
  })

  test("a tenant's own steps, with inputs of their own, do not wait for the others", async () => {
    using two = twoSlices()
    using made = await layers({ graphs: { captureAfter: 1 } })
    const { decode, prefill, few, many } = made
    using steps = schedule(two.plan, {
      partition: two.partition,
      tenants: [
        { name: 'decode', layer: decode, x: few },
        { name: 'prefill', layer: prefill, x: many },
      ],
    })
    const slow = Array.from({ length: 20 }, () => steps.tenant('prefill').enqueue())
    for (let tokens = 0; tokens < 12; tokens++) {
      using x = Tensor.randn([tokens, 16], { device, dtype: decode.dtype, seed: tokens })
      const { output } = await decode.forward(x)
      using step = steps.tenant('decode').enqueue(x, {})
      const got = (await step.done()) as Tensor
      expect(await got.toArray()).toEqual(await output.toArray())
      for (const tensor of [got, output]) tensor.dispose()
    }
    for (const step of slow) {
      disposeOf(await step.done())
      step.dispose()
    }
  })

  test('lanes of its own would leave the slice: refused by name, as is what is no layer', async () => {
    using two = twoSlices()
    using made = await layers({ strategy: 'streams' })
    const { decode, few } = made
    using steps = schedule(two.plan, { partition: two.partition, tenants: [{ name: 'decode', layer: decode, x: few }] })
    const { tenants } = await steps.run()
    expect(String(tenants[0]?.error)).toMatch(/stream: strategy 'streams'.*slice/)
    const tenantsOf = (tenant: object) => ({ partition: two.partition, tenants: [tenant as never] })
    expect(() => schedule(two.plan, tenantsOf({ layer: {}, x: few }))).toThrow(/tenants\[0\]\.layer.*MoELayer/)
    expect(() => schedule(two.plan, tenantsOf({ layer: decode, y: few }))).toThrow(/tenants\[0\].*'y'/)
  })

  test('a layer is a tenant as it is', async () => {
    using made = await layers()
    const { decode, few } = made
    using two = twoSlices()
    using steps = schedule(two.plan, { partition: two.partition, tenants: [{ name: 'decode', tenant: decode }] })
    const { tenants } = await steps.run({ args: { decode: [few] } })
    expect(tenants[0]?.error).toBeNull()
    disposeOf(tenants[0]?.value)
    await Stream.default(device).synchronize()
  })
})
