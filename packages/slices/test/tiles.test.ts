// Steps tile by tile: what the model is, and that it is found again in what it says.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { policies } from '../src/index.js'
import {
  calibrateTiles,
  hopperTile,
  predictTiles,
  recordedTrace,
  type StepMeasurements,
  simulate,
  type TileModel,
  tilesFor,
} from '../src/simulator.js'
import { measured, qwen } from './support/measured.js'

const one = { sms: [8], sliceOf: [0] }
/** Tiles of 64 rows by 100 columns; 8 SMs that compute 1000 operations a microsecond each, and memory without end. */
const bare: TileModel = {
  tile: { rows: 64, columns: 100, sms: 1 },
  linears: [{ columns: 800, written: 800, depth: 10 }],
  bytesPerValue: 2,
  smBytesPerSecond: 1e15,
  memoryBytesPerSecond: 1e18,
  rate: [{ sms: 8, perSecond: 8e9 }],
  exposed: 0,
  tileUs: 0,
  stepUs: 0,
  perSliceUs: 0,
  contention: 0,
  walkUs: 0,
}
const us = (model: TileModel, counts: number[], placement = one) => predictTiles(model, counts, placement).stepUs
/** 2 · 64 · 100 · 10 operations. */
const fullTile = 128

describe('a step tile by tile', () => {
  test('tiles run in turns: one more than there are SMs takes two', () => {
    expect(us(bare, [64])).toBeCloseTo(fullTile, 9)
    const wider = { ...bare, linears: [{ columns: 900, written: 900, depth: 10 }] }
    expect(us(wider, [64])).toBeCloseTo(2 * fullTile, 9)
    expect(us({ ...bare, tile: { rows: 64, columns: 100, sms: 2 } }, [64])).toBeCloseTo(fullTile, 9)
  })
  test('an expert costs what its rows are padded to, in tiles of equal size', () => {
    expect(us(bare, [65])).toBeCloseTo((2 * fullTile * 40) / 64, 9) // two tiles of 40
    expect(us(bare, [1])).toBeCloseTo((fullTile * 8) / 64, 9)
    expect(us(bare, [0])).toBe(0)
  })
  test('where experts are divided among slices, kernels may have another tile', () => {
    const model = { ...bare, tile: { rows: 64, columns: 100, sms: 1, divided: { rows: 64, columns: 400 } } }
    const two = { sms: [8, 8], sliceOf: [0, 1] }
    expect(us(model, [64, 0], { sms: [8], sliceOf: [0, 0] })).toBeCloseTo(fullTile, 9)
    expect(us(model, [64, 0], two)).toBeCloseTo(
      us({ ...bare, tile: { rows: 64, columns: 400, sms: 1 } }, [64, 0], two),
      9,
    )
    expect(us(model, [64, 0], two)).toBeGreaterThan(2 * fullTile)
  })
  test('linear layers come one after the other, an expert without rows in no tile', () => {
    const [linear] = bare.linears
    if (!linear) throw new Error('no layer')
    expect(us({ ...bare, linears: [linear, linear] }, [64])).toBeCloseTo(2 * fullTile, 9)
    expect(us(bare, [64, 0, 64], { sms: [8], sliceOf: [0, 0, 0] })).toBeCloseTo(2 * fullTile, 9)
  })
  /** Bytes of one of the 8 tiles of an expert with one row tile: from memory, and half of what other SMs have read. */
  const tileBytes = (rows: number) => {
    const loaded = 2 * (100 * 10 + rows * (10 + 100))
    const fromMemory = (2 * (8000 + rows * 810)) / 8
    return { fromMemory, all: fromMemory + (loaded - fromMemory) / 2 }
  }
  test('the memory: no faster than its SMs read, nor than it gives, and slower where both are near', () => {
    const { fromMemory, all } = tileBytes(8)
    const reading = { ...bare, rate: [{ sms: 8, perSecond: 1e30 }], smBytesPerSecond: 1e6 }
    expect(us(reading, [8])).toBeCloseTo(all, 6)
    // Of a memory that has just what they ask for together, they read ∛2 times as long.
    const asked = (8e6 * fromMemory) / all
    expect(us({ ...reading, memoryBytesPerSecond: asked }, [8])).toBeCloseTo(all * Math.cbrt(2), 6)
    expect(us({ ...reading, memoryBytesPerSecond: asked / 1e4 }, [8])).toBeCloseTo(all * 1e4, 3)
    // Tiles that share their weights read them from memory once for up to 8.
    const rows = (n: number) => us({ ...reading, memoryBytesPerSecond: 1e3 }, [n]) / 1e3
    expect(rows(512) - rows(64)).toBeCloseTo(2 * 448 * 810, 3)
    expect(rows(576) - rows(512)).toBeCloseTo(2 * (8000 + 64 * 810), 3)
  })
  test('weights that tiles share are in L2 for all but one of them, which is half the way', () => {
    // Weights alone: 8 row tiles read what one reads, and the other 7 of each from L2.
    const linears = [{ columns: 800, written: 0, depth: 1e6 }]
    const reading = { ...bare, linears, rate: [{ sms: 64, perSecond: 1e30 }], smBytesPerSecond: 1e6 }
    const [few, many] = [8, 512].map((n) => us(reading, [n], { sms: [64], sliceOf: [0] }))
    const [rows, weights] = [64 * 1e6, 100 * 1e6]
    expect(many).toBeCloseTo(2 * (weights / 8 + rows / 8 + (weights + rows - weights / 8 - rows / 8) / 2), -1)
    expect(few).toBeCloseTo(2 * (weights + 1e6 + (8e6 - 1e6) / 2), -1)
  })
  test('what is hidden, what is not, and what tiles and steps cost besides', () => {
    const model = { ...bare, smBytesPerSecond: 1e9 / 8 }
    const memory = tileBytes(64).all / 125
    expect(memory).toBeGreaterThan(fullTile / 2)
    const longer = Math.max(memory, fullTile)
    const shorter = Math.min(memory, fullTile)
    expect(us(model, [64])).toBeCloseTo(longer, 6)
    expect(us({ ...model, exposed: 0.5, tileUs: 3, stepUs: 7 }, [64])).toBeCloseTo(longer + shorter / 2 + 3 + 7, 6)
  })
  test('slices: the slowest ends the step; they contend, fork and walk', () => {
    const two = { sms: [4, 4], sliceOf: [0, 1] }
    expect(predictTiles(bare, [64, 32], two)).toEqual({ stepUs: 2 * fullTile, sliceUs: [2 * fullTile, fullTile] })
    expect(us({ ...bare, perSliceUs: 5, walkUs: 4 }, [64, 32], two)).toBeCloseTo(2 * fullTile + 5 + 2, 9)
    const saturated = { ...bare, rate: [{ sms: 8, perSecond: 1e30 }], smBytesPerSecond: 1e6, memoryBytesPerSecond: 4e6 }
    const free = predictTiles(saturated, [64, 64], two)
    // A slice asks for what its turns read from memory; of others it meets the part that is said.
    const { fromMemory, all } = tileBytes(64)
    const own = fromMemory / all
    const ratio = (others: number) => Math.cbrt((1 + (own + others) ** 3) / (1 + own ** 3))
    const contended = { ...saturated, contention: 0.5 }
    const alone = free.sliceUs[0] ?? 0
    expect(predictTiles(contended, [64, 64], two).sliceUs[0]).toBeCloseTo(alone * ratio(0.5), 6)
    // As long as both run: a slice with twice the work does its second half as if it were alone.
    const three = { sms: [4, 4], sliceOf: [0, 1, 1] }
    const { sliceUs } = predictTiles(contended, [64, 64, 64], three)
    expect(sliceUs[0]).toBeCloseTo(alone * ratio(0.5), 6)
    expect(sliceUs[1]).toBeCloseTo(alone * ratio(0.5) + alone, 6)
    expect(predictTiles(contended, [64, 0], two).sliceUs).toEqual([alone, 0])
    // However they get on, the memory has to give all bytes.
    expect(free.stepUs).toBeCloseTo((2 * 2 * (8000 + 64 * 810)) / 4, 6)
  })
  test('where power is the limit, an SM is slower the more there are, whosever they are', () => {
    const rate = [
      { sms: 4, perSecond: 6e9 },
      { sms: 8, perSecond: 8e9 },
    ]
    expect(us({ ...bare, rate }, [64], { sms: [4], sliceOf: [0] })).toBeCloseTo((2 * fullTile) / 1.5, 9)
    expect(us({ ...bare, rate }, [64, 64], { sms: [4, 4], sliceOf: [0, 1] })).toBeCloseTo(2 * fullTile, 9)
  })
  test('more work never ends sooner on the same units', () => {
    const counts = fc.array(fc.integer({ min: 0, max: 300 }), { minLength: 3, maxLength: 3 })
    fc.assert(
      fc.property(counts, fc.integer({ min: 0, max: 2 }), (load, e) => {
        const all = { sms: [8], sliceOf: [0, 0, 0] }
        const more = load.with(e, (load[e] ?? 0) + 64 * 8)
        expect(us(bare, more, all)).toBeGreaterThanOrEqual(us(bare, load, all) - 1e-9)
      }),
    )
  })
})

/** An H200's kernels, made up. */
const device: TileModel = {
  tile: { rows: 160, columns: 256, sms: 1 },
  linears: [
    { columns: 1536, written: 768, depth: 2048 },
    { columns: 2048, written: 2048, depth: 768 },
  ],
  bytesPerValue: 2,
  smBytesPerSecond: 80e9,
  memoryBytesPerSecond: 4.3e12,
  rate: [{ sms: 132, perSecond: 600e12 }],
  exposed: 0.2,
  tileUs: 1.5,
  stepUs: 12,
  perSliceUs: 3,
  contention: 0.2,
  walkUs: 30,
}

function made(seed: number, noise: number, tokens: readonly number[]): StepMeasurements {
  const all = measured(qwen, seed, noise, ({ counts, sms, sliceOf }) =>
    us(device, [...counts], { sms: [...sms], sliceOf: [...(sliceOf ?? counts.map(() => 0))] }),
  )
  return { ...all, rows: all.rows.filter((row) => tokens.includes(row.tokens)) }
}
/** Steps of several seeds, so that a regime has more rows than parameters. */
function several(noise: number, tokens: readonly number[]): StepMeasurements {
  const [first, ...others] = [1, 2, 3].map((seed) => made(seed, noise, tokens))
  if (!first) throw new Error('none')
  return { ...first, rows: [first, ...others].flatMap(({ rows }) => rows) }
}

describe('calibrated by tiles', () => {
  test('a tile that is told is not tried', () => {
    const asked: number[] = []
    const tile = (rows: number) => {
      asked.push(rows)
      return hopperTile(rows)
    }
    const { regimes } = calibrateTiles(several(0.01, [1024]), { heldOut: false, tile })
    expect(asked).toEqual(regimes.map(({ tokens }) => (tokens * qwen.topK) / qwen.numExperts))
    for (const [i, { model }] of regimes.entries()) expect(model.tile).toEqual(hopperTile(asked[i] ?? 0))
    expect(hopperTile(2.5).columns).toBe(256)
    expect(hopperTile(4000)).toEqual({ rows: 320, columns: 256, sms: 2 })
    expect(() => hopperTile(-1)).toThrow(/rows/)
  })
  test('a device of its form is found again, its tile as well, and unseen steps of it', () => {
    const { regimes } = calibrateTiles(several(0.01, [1024]), { heldOut: false })
    const [regime] = regimes
    if (!regime) throw new Error('no regime')
    expect(regimes).toHaveLength(1)
    expect(regime.heldOut).toBeNull()
    expect(regime.model.tile).toEqual(device.tile)
    expect(regime.agreement.maxError).toBeLessThan(0.04)
    for (const row of made(9, 0, [1024]).rows) {
      const placement = { sms: row.sms, sliceOf: row.sliceOf ?? row.counts.map(() => 0) }
      expect(Math.abs(predictTiles(regime.model, row.counts, placement).stepUs / row.us - 1)).toBeLessThan(0.06)
    }
  }, 60_000)
  test('each row is held out once, in its place; the same every time', () => {
    const file = made(4, 0.02, [64])
    const found = calibrateTiles(file)
    expect(found.heldOut.rows.map(({ row }) => row)).toEqual(file.rows)
    expect(found.heldOut.maxError).toBeGreaterThan(found.agreement.maxError)
    expect(calibrateTiles(file)).toEqual(found)
  }, 60_000)
  test('the nearest regime by ratio is taken; none is refused', () => {
    const regimes = [64, 4096].map((assignments) => ({ assignments, model: { ...device, stepUs: assignments } }))
    expect([0, 500, 520, 1e6].map((a) => tilesFor(regimes, a).stepUs)).toEqual([64, 64, 4096, 4096])
    expect(() => tilesFor([], 8)).toThrow(/regimes\.length/)
    expect(() => tilesFor(regimes, Number.NaN)).toThrow(/assignments/)
  })
})

test('the simulator takes its time from a clock, and its policies decide by the cost model', () => {
  const counts = Array.from({ length: 4 }, (_, i) => Array.from({ length: 128 }, (_, e) => (e === i ? 128 : 3)))
  const trace = recordedTrace('made up', counts)
  const asked: number[] = []
  const clock = (assignments: number) => {
    asked.push(assignments)
    return device
  }
  const whole = {
    name: 'whole',
    decide: () => ({ sms: [132], sliceOf: new Array<number>(128).fill(0), reason: 'all of it' }),
  }
  const { makespanUs } = simulate(whole, trace, { warmupSteps: 0, clock, oracle: false })
  const placement = { sms: [132], sliceOf: new Array<number>(128).fill(0) }
  expect(makespanUs).toBeCloseTo(
    counts.reduce((sum, each) => sum + us(device, each, placement), 0),
    6,
  )
  expect(asked).toEqual(counts.map((each) => each.reduce((a, b) => a + b, 0)))
  const result = simulate(policies.proportional(), trace, { warmupSteps: 0, clock: device })
  expect(result.oracleUs).toBeGreaterThan(0)
})
