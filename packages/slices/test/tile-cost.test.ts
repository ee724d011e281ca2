// The cost model by tiles: what the simulator's clock says, but for turns that are not full.
import { ExpertProfiler } from '@nexus/profiler'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  arrange,
  type CostModel,
  gatedExpertCost,
  h200,
  type Placement,
  predictExpertUs,
  predictStep,
  SliceManager,
  type TileModel,
  tileCost,
} from '../src/index.js'
import { predictTiles } from '../src/simulator.js'
import { h200Tiles } from './support/h200-tiles.js'

/** Tiles of 64 rows by 100 columns; 8 SMs that compute 1000 operations a microsecond each, and memory at hand without end. */
const bare: TileModel = {
  tile: { rows: 64, columns: 100, bytesUnderWay: 1000, sms: 1 },
  linears: [{ columns: 800, written: 800, depth: 10 }],
  bytesPerValue: 2,
  latencyUs: 0,
  memoryBytesPerSecond: 1e18,
  rate: [{ sms: 8, perSecond: 8e9 }],
  exposed: 0,
  tileUs: 0,
  stepUs: 0,
  dividedUs: 0,
}
/** 2 · 64 · 100 · 10 operations. */
const fullTile = 128
const us = (model: TileModel, load: number[], placement: Placement) =>
  predictStep(tileCost(model), load, placement).stepUs
const on = (...sms: number[]): Placement => ({ sms, sliceOf: sms.map((_, s) => s) })

describe('what an expert is worth', () => {
  test('is the time of all its tiles on one SM, which the SMs of a slice divide', () => {
    expect(us(bare, [64], on(8))).toBeCloseTo(fullTile, 9)
    expect(us(bare, [64], on(5))).toBeCloseTo((8 * fullTile) / 5, 9)
    expect(us(bare, [65], on(8))).toBeCloseTo((2 * fullTile * 36) / 64, 9)
    expect(us(bare, [64, 128], on(4, 4))).toBeCloseTo(4 * fullTile, 9)
    expect(predictExpertUs(tileCost(bare), 64, 4)).toBeCloseTo(2 * fullTile, 9)
    expect(predictExpertUs(tileCost(bare), 0, 4)).toBe(0)
  })
  test('of an expected count below one is that of a row, with the probability that there is one', () => {
    expect(us(bare, [0.25], on(8))).toBeCloseTo((0.25 * fullTile * 8) / 64, 9)
  })
  test('is more where SMs together ask for more than the memory has, and where power limits their clock', () => {
    // One ring a tile, read in 5 us: 16 kB of weights, 8 SMs, and a memory that has just that.
    const rings = (2 * 100 * 10) / 1000
    const asked = ((16000 + 2 * 8 * 810) * 1e6) / (5 * rings)
    const reading = { ...bare, rate: [{ sms: 8, perSecond: 1e30 }], latencyUs: 5, memoryBytesPerSecond: asked }
    // To the per cent, so that it is looked up.
    expect(us(reading, [8], on(8))).toBeCloseTo(5 * rings * 1.26, 6)
    expect(us(reading, [8], on(4))).toBeCloseTo(2 * 5 * rings * 1.04, 6)
    const hot = {
      ...bare,
      rate: [
        { sms: 4, perSecond: 8e9 },
        { sms: 8, perSecond: 8e9 },
      ],
    }
    expect(us(hot, [64], on(4))).toBeCloseTo(us(hot, [64], on(8)), 9)
  })
  test('of kernels with another tile for several slices is by that tile there, and by their own in one', () => {
    const model = {
      ...bare,
      tile: { ...bare.tile, divided: { rows: 16, columns: 800, bytesUnderWay: 1000 } },
      tileUs: 1,
    }
    expect(us(model, [64], on(8))).toBeCloseTo(fullTile + 1, 9)
    expect(us(model, [64, 0], on(4, 4))).toBeCloseTo((8 * fullTile + 4) / 4, 9)
  })
})

describe('a step by it', () => {
  const counts = fc.array(fc.integer({ min: 0, max: 700 }), { minLength: 6, maxLength: 24 })
  const placements = fc
    .tuple(fc.integer({ min: 1, max: 7 }), fc.integer({ min: 1, max: 7 }))
    .map(([a, b]) => [8 * a, 8 * b, 132 - 8 * (a + b)])
  test('is the clock’s less its last turns: at most a tile of each layer', () => {
    const free = { ...h200Tiles, memoryBytesPerSecond: 1e18, stepUs: 0, dividedUs: 0, combineBytesPerSecond: 0 }
    for (const tile of [h200Tiles.tile, { ...h200Tiles.tile, rows: 64, sms: 1 }]) {
      const model: TileModel = { ...free, tile }
      fc.assert(
        fc.property(counts, placements, (load, sms) => {
          const placement = { sms, sliceOf: load.map((_, e) => e % 3) }
          const { sliceUs } = predictTiles(model, load, placement)
          const worth = predictStep(tileCost(model), load, placement).sliceUs
          const largest = Math.max(...load)
          for (const [s, clock] of sliceUs.entries()) {
            const rest = clock - (worth[s] ?? 0)
            // Pairs of SMs: of an odd number of SMs there are none, here all sizes are even.
            expect(rest).toBeGreaterThan(-1e-6 * clock)
            const tileUs =
              2 *
              ((2 * Math.min(tile.rows, largest + 8) * 2048 * 256) / (h200Tiles.rate.at(-1)?.perSecond ?? 1)) *
              1e6 *
              132
            expect(rest).toBeLessThan(2 * (tileUs + 2 * 8 * 1.84 + 2))
          }
        }),
        { numRuns: 100 },
      )
    }
  })
  test('outside of its slices costs what the clock says', () => {
    const load = Array.from({ length: 12 }, (_, e) => 100 + e)
    const of = (model: TileModel) => us(model, load, { sms: [132], sliceOf: load.map(() => 0) })
    const without = { ...h200Tiles, stepUs: 0, dividedUs: 0, combineBytesPerSecond: 0 }
    const clock = (model: TileModel) => predictTiles(model, load, { sms: [132], sliceOf: load.map(() => 0) }).stepUs
    expect(of(h200Tiles) - of(without)).toBeCloseTo(clock(h200Tiles) - clock(without), 6)
  })
  test('is never over before the memory has given all bytes', () => {
    const slow = { ...h200Tiles, memoryBytesPerSecond: 1e9 }
    const load = [300, 200, 100]
    const bytes = 2 * (3 * 3 * 2048 * 1024 + 600 * (2048 + 1024 + 1024 + 2048))
    expect(1e3 * us(slow, load, on(64, 44, 24))).toBeGreaterThan(bytes)
    expect(us(slow, load, on(64, 44, 24))).toBeCloseTo(predictTiles(slow, load, on(64, 44, 24)).stepUs, -3)
  })
})

describe('arranged by it', () => {
  test('a step bound by memory ends sooner by the clock than arranged by bytes and operations', () => {
    // 128 experts of 2048 × 768, 64 rows each in the mean: a tile of 160 rows each, whose ring an SM reads at 68 GB/s.
    const model: TileModel = {
      ...h200Tiles,
      tile: { rows: 160, columns: 256, bytesUnderWay: 128 * 1024, sms: 1, ahead: true },
      linears: [
        { columns: 1536, written: 768, depth: 2048 },
        { columns: 2048, written: 2048, depth: 768 },
      ],
    }
    const raw = Array.from({ length: 128 }, (_, e) => Math.exp(2 * Math.sin(e * 12.9898)))
    const load = raw.map((x) => Math.round((8192 * x) / raw.reduce((a, b) => a + b, 0)))
    const constraints = { sms: 132, granularity: 8, minSms: 8, slices: 3, dwellSteps: 0, switchUs: 0 }
    const by = (cost: CostModel) => predictTiles(model, load, arrange(load, constraints, cost)).stepUs
    const plain = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
    expect(by(tileCost(model))).toBeLessThan(0.97 * by(plain))
  })
})

describe('in use', () => {
  test('says the same however many loads and numbers of SMs there were before, and for loads that no table has', () => {
    const fresh = () => tileCost({ ...h200Tiles })
    const kept = fresh()
    const loads = fc.array(fc.double({ min: 0, max: 2e5, noNaN: true }), { minLength: 3, maxLength: 40 })
    fc.assert(
      fc.property(loads, fc.integer({ min: 3, max: 16 }), (load, portions) => {
        const placement = { sms: [8, 8, 8 * portions], sliceOf: load.map((_, e) => e % 3) }
        expect(predictStep(kept, load, placement)).toEqual(predictStep(fresh(), load, placement))
      }),
      { numRuns: 200 },
    )
  })
  test('one model has one cost, whoever asks', () => {
    expect(tileCost(bare)).toBe(tileCost(bare))
    expect(tileCost({ ...bare })).not.toBe(tileCost(bare))
    expect(tileCost(bare).tiles).toBe(bare)
  })
  test('a manager decides by the cost of the load it has', () => {
    const few = tileCost({ ...h200Tiles, stepUs: 1000 })
    const many = tileCost({ ...h200Tiles, stepUs: 2000 })
    const asked: number[] = []
    const manager = new SliceManager({
      device: h200,
      numExperts: 4,
      cost: (assignments) => {
        asked.push(assignments)
        return assignments < 1000 ? few : many
      },
    })
    const profile = (count: number) => {
      const profiler = new ExpertProfiler({ numExperts: 4 })
      for (let step = 0; step < 10; step++) profiler.record({ counts: [count, count, count, count] })
      return profiler.snapshot()
    }
    expect(manager.update(profile(100)).predictedUs).toBeGreaterThan(1000)
    expect(manager.update(profile(100)).predictedUs).toBeLessThan(2000)
    expect(manager.update(profile(300)).predictedUs).toBeGreaterThan(2000)
    expect(asked).toContain(400)
    expect(asked).toContain(1200)
    manager.dispose()
  })
  test('what is neither a cost model nor a function that returns one is refused by name', () => {
    const make = (cost: unknown) => new SliceManager({ device: h200, numExperts: 4, cost: cost as CostModel })
    expect(() => make('fast')).toThrow(/options\.cost: expected a CostModel/)
    expect(() => make(() => null)).toThrow(/cost\(0\): expected a CostModel, got null/)
  })
})
