/** How a strategy is chosen: least predicted time, kept within hysteresis and dwell, corrected by what was measured. */
import { describe, expect, test } from 'vitest'
import { costOfLoad, h200 } from '../src/index.js'
import { resolveOptions } from '../src/options.js'
import { Chooser } from '../src/scheduling/choice.js'
import { layerCost, predictUs } from '../src/scheduling/cost.js'

const chooser = () => new Chooser({ leastGain: 0.03, dwellSteps: 64 })
const two = (fused: number | null, tiered: number | null) =>
  [
    { strategy: 'fused', us: fused },
    { strategy: 'tiered', us: tiered },
  ] as const

describe('Chooser', () => {
  test('before any load: the first, and it says so', () => {
    expect(chooser().choose(0, two(null, null), 'no load')).toMatchObject({
      strategy: 'fused',
      reason: 'fused: no load is known yet',
    })
  })

  test('the sooner one, with the times of all', () => {
    const { strategy, reason, candidates } = chooser().choose(16, two(251, 210.34), 'the last window')
    expect(strategy).toBe('tiered')
    expect(reason).toBe('tiered: 210.3 us against fused 251.0 us by the last window')
    expect(candidates.map(({ predictedUs }) => predictedUs)).toEqual([251, 210.34])
  })

  test('it may say that slicing does not pay', () => {
    expect(chooser().choose(16, two(200, 210), 'the last window').reason).toBe(
      'fused: slicing does not pay: 200.0 us against tiered 210.0 us by the last window',
    )
  })

  test('a small gain changes nothing; a large one does once the dwell is over', () => {
    const it = chooser()
    expect(it.choose(0, two(100, 110), 'x').strategy).toBe('fused')
    expect(it.choose(100, two(100, 98), 'x')).toMatchObject({
      strategy: 'fused',
      reason: 'fused kept: tiered would end 2.0 % sooner, less than 3 %',
    })
    expect(it.choose(200, two(100, 90), 'x').strategy).toBe('tiered')
    expect(it.choose(216, two(80, 100), 'x')).toMatchObject({
      strategy: 'tiered',
      reason: 'tiered kept: taken 16 steps ago, it stays for 64; fused would end 20.0 % sooner',
    })
    expect(it.choose(264, two(80, 100), 'x').strategy).toBe('fused')
  })

  test('measured, slices need the margin, and fused needs none against them: timed alone, its steps do not overlap', () => {
    const it = chooser()
    const seen = (strategy: 'fused' | 'tiered', us: number) => {
      for (let i = 0; i < 5; i++) it.observe(strategy, us, 100)
    }
    seen('fused', 100)
    seen('tiered', 95)
    expect(it.choose(0, two(100, 100), 'x').strategy).toBe('tiered')
    seen('tiered', 99)
    expect(it.choose(100, two(100, 100), 'x').strategy).toBe('tiered')
    seen('tiered', 101)
    expect(it.choose(200, two(100, 100), 'x').strategy).toBe('fused')
    seen('tiered', 98)
    expect(it.choose(300, two(100, 100), 'x')).toMatchObject({
      strategy: 'fused',
      reason: expect.stringMatching(/^fused kept: tiered would end 2.0 % sooner \(.*\), less than 3 %$/),
    })
  })

  test('alternating loads around the margin do not make it flap', () => {
    const it = chooser()
    const taken = new Set<string>()
    for (let step = 0; step < 4096; step += 16) taken.add(it.choose(step, two(100, step % 32 ? 98 : 102), 'x').strategy)
    expect([...taken]).toEqual(['fused'])
  })

  test('a model that flatters a strategy is found out by measurements', () => {
    const it = chooser()
    for (let i = 0; i < 8; i++) it.observe('fused', 150, 100)
    // What was not measured gets what the measured have in common: the order of the model stays.
    expect(it.choose(0, two(100, 90), 'x').candidates.map(({ predictedUs }) => predictedUs)).toEqual([150, 135])
    for (let i = 0; i < 8; i++) it.observe('tiered', 180, 90)
    expect(it.choose(100, two(100, 90), 'x')).toMatchObject({ strategy: 'fused' })
  })
})

describe('predictions on an H200', () => {
  const config = resolveOptions({
    inputDim: 2048,
    hiddenDim: 768,
    numExperts: 128,
    topK: 8,
    dtype: 'bf16',
    device: 'cpu',
  })
  const cost = layerCost(config, h200)
  const fused = (load: number[]) => predictUs(cost, load, { strategy: 'fused', sms: [132], laneOf: [] })
  const half = Array.from({ length: 128 }, (_, e) => (e < 4 ? 0 : 1))

  test('an even decode load is bound by memory: slicing does not pay', () => {
    const load = new Array<number>(128).fill(4)
    const even = Array.from({ length: 128 }, (_, e) => e % 2)
    expect(fused(load)).toBeLessThan(predictUs(cost, load, { strategy: 'tiered', sms: [64, 68], laneOf: even }))
    // 128 experts of 9.4 MB at 4.65 TB/s
    expect(fused(load)).toBeGreaterThan(258)
    expect(fused(load)).toBeLessThan(300)
  })

  test('on the device itself it is the kernels’ tiles that cost; a layer of few weights has others', () => {
    const load = new Array<number>(128).fill(4)
    const tiled = layerCost({ ...config, device: 'cuda:0' }, h200)
    const costs = [4, 512, 32768].map((assignments) => costOfLoad(tiled, [assignments]))
    expect(costs.map(({ tiles }) => tiles?.tile.rows)).toEqual([32, 32, 320])
    expect(costOfLoad(tiled, [33000])).toBe(costs[2])
    expect(costs[0]?.tiles?.linears).toEqual([
      { columns: 1536, written: 768, depth: 2048 },
      { columns: 2048, written: 2048, depth: 768 },
    ])
    // 64 tokens, measured: 272 µs whole, 303 in three slices of 48, 44 and 40.
    const thirds = Array.from({ length: 128 }, (_, e) => (e < 47 ? 0 : e < 90 ? 1 : 2))
    const whole = predictUs(tiled, load, { strategy: 'fused', sms: [132], laneOf: [] })
    const sliced = predictUs(tiled, load, { strategy: 'tiered', sms: [48, 44, 40], laneOf: thirds })
    expect(Math.abs(whole / 272 - 1)).toBeLessThan(0.1)
    expect(Math.abs(sliced / 303 - 1)).toBeLessThan(0.1)
    // One divided launch has the launches of slices, too, and not the one for both layers.
    const cooperative = predictUs(tiled, load, { strategy: 'cooperative', sms: [48, 44, 40], laneOf: thirds })
    expect(cooperative).toBe(sliced)
    expect(cooperative).toBeGreaterThan(whole)
    const small = { ...config, device: 'cuda:0' as const, experts: { ...config.experts, numExperts: 2 } }
    expect(costOfLoad(layerCost(small, h200), load).tiles).toBeUndefined()
    const other = { ...h200, name: 'NVIDIA A100-SXM4-80GB' }
    expect(costOfLoad(layerCost({ ...config, device: 'cuda:0' }, other), load).tiles).toBeUndefined()
  })

  test('lanes cost what they are forked for', () => {
    const load = new Array<number>(128).fill(4)
    const of = (strategy: 'tiered' | 'cooperative') => predictUs(cost, load, { strategy, sms: [48, 84], laneOf: half })
    expect(of('tiered') - of('cooperative')).toBeCloseTo(1.25)
  })
})
