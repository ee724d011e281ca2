import { expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { BaselineMoELayer, MoELayer, type MoELayerOptions, Tensor } from '../src/index.js'

onEachDevice('stats', (device) => {
  const options: MoELayerOptions = {
    inputDim: 16,
    hiddenDim: 8,
    numExperts: 4,
    topK: 2,
    shared: { hiddenDim: 8 },
    dtype: 'f32',
    device,
  }

  test.each([
    ['MoELayer', MoELayer],
    ['BaselineMoELayer', BaselineMoELayer],
  ] as const)('%s: of a step and of a life, as plain data', async (_, make) => {
    await using layer = await make.create(options)
    expect(layer.performanceStats()).toMatchObject({ steps: 0, measuredSteps: 0, times: null, loadImbalance: null })
    using x = Tensor.randn([50, 16], { device })
    const first = await layer.forward(x)
    const second = await layer.forward(new Float32Array(0))
    for (const { output } of [first, second]) output.dispose()

    const { stats } = first
    expect([...stats.counts].reduce((a, b) => a + b, 0)).toBe(100)
    expect(stats.loadImbalance).toBe(Math.max(...stats.counts) / 25)
    expect(stats.activeExperts).toBe(stats.counts.filter((n) => n > 0).length)
    const { routerMs, expertsMs, sharedMs, combineMs, totalMs } = stats.times
    for (const ms of [routerMs, expertsMs, sharedMs, combineMs]) expect(ms).toBeGreaterThanOrEqual(0)
    expect(totalMs).toBeGreaterThan(0)
    const sum = [routerMs, expertsMs, sharedMs, combineMs].reduce<number>((total, ms) => total + (ms ?? Number.NaN), 0)
    expect(totalMs).toBeCloseTo(sum, 2)
    expect(second.stats).toMatchObject({ tokens: 0, activeExperts: 0, loadImbalance: null })

    const life = layer.performanceStats()
    expect(life).toMatchObject({
      device,
      dtype: 'f32',
      steps: 2,
      tokens: 50,
      measuredSteps: 2,
      measuredTokens: 50,
      expertCounts: [...stats.counts],
      loadImbalance: stats.loadImbalance,
      // router 4·16, experts 4·(16·16 + 16·8), shared 16·16 + 16·8 float32
      weightBytes: 4 * (64 + 4 * 384 + 384),
    })
    expect(life.times?.last).toEqual(second.stats.times)
    expect(JSON.parse(JSON.stringify(life))).toEqual(life)
  })

  test('steps by enqueue count, unmeasured; the variants are those of the last step', async () => {
    await using layer = await MoELayer.create(options)
    using x = Tensor.randn([5, 16], { device })
    using _output = layer.enqueue(x)
    const life = layer.performanceStats()
    expect(life).toMatchObject({ steps: 1, tokens: 5, measuredSteps: 0, measuredTokens: 0, expertCounts: [0, 0, 0, 0] })
    expect(life.variants.experts).toHaveLength(2)
    expect(life.variants.shared).toHaveLength(2)
    expect(life.workspaceBytes).toBeGreaterThan(0)
  })
})
