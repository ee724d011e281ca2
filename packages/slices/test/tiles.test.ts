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
const us = (model: TileModel, counts: number[], placement = one) => predictTiles(model, counts, placement).stepUs
/** 2 · 64 · 100 · 10 operations. */
const fullTile = 128

describe('a step tile by tile', () => {
  test('tiles run in turns: one more than there are SMs takes two', () => {
    expect(us(bare, [64])).toBeCloseTo(fullTile, 9)
    const wider = { ...bare, linears: [{ columns: 900, written: 900, depth: 10 }] }
    expect(us(wider, [64])).toBeCloseTo(2 * fullTile, 9)
    expect(us({ ...bare, tile: { ...bare.tile, sms: 2 } }, [64])).toBeCloseTo(fullTile, 9)
  })
  test('an expert costs what its rows are padded to, in tiles of equal size', () => {
    expect(us(bare, [65])).toBeCloseTo((2 * fullTile * 36) / 64, 9) // two tiles, of 40 and 32
    expect(us(bare, [1])).toBeCloseTo((fullTile * 8) / 64, 9)
    expect(us(bare, [0])).toBe(0)
  })
  test('two SMs with one tile share its rows; what is left of an odd number of shares is two columns of tiles at a time', () => {
    const pair = { ...bare, tile: { ...bare.tile, rows: 128, sms: 2 } }
    // Each SM has half of the rows and the same weights: 4 pairs, 8 columns of tiles, two turns.
    expect(us(pair, [128])).toBeCloseTo(2 * fullTile, 9)
    // 3 shares of 64: 8 tiles by two of them, and 4 of two columns by the third.
    expect(us(pair, [192])).toBeCloseTo(3 * fullTile, 9)
    expect(us(pair, [64])).toBeCloseTo(fullTile, 9)
    // Of memory, an odd share's weights come once more.
    const slow = { ...pair, memoryBytesPerSecond: 1e3 }
    expect((us(slow, [192]) - us(slow, [128])) / 1e3).toBeCloseTo(2 * (8000 + 64 * 810), 0)
    expect((us(slow, [768]) - us(slow, [640])) / 1e3).toBeCloseTo(2 * 128 * 810, 0)
  })
  test('where experts are divided among slices, kernels may have another tile; one that is found ahead costs nothing to find', () => {
    const divided = { rows: 64, columns: 400, bytesUnderWay: 1000, ahead: true }
    const model = { ...bare, tileUs: 3, tile: { ...bare.tile, divided } }
    const two = { sms: [8, 8], sliceOf: [0, 1] }
    expect(us(model, [64, 0], { sms: [8], sliceOf: [0, 0] })).toBeCloseTo(fullTile + 3, 9)
    const other = { ...bare, tile: { ...divided, sms: 1 } }
    expect(us(model, [64, 0], two)).toBeCloseTo(us(other, [64, 0], two), 9)
    expect(us({ ...bare, tileUs: 3 }, [64, 0], two)).toBeCloseTo(us(bare, [64, 0], two) + 3, 9)
    expect(us(model, [64, 0], two)).toBeGreaterThan(2 * fullTile)
  })
  test('linear layers come one after the other, an expert without rows in no tile', () => {
    const [linear] = bare.linears
    if (!linear) throw new Error('no layer')
    expect(us({ ...bare, linears: [linear, linear] }, [64])).toBeCloseTo(2 * fullTile, 9)
    expect(us(bare, [64, 0, 64], { sms: [8], sliceOf: [0, 0, 0] })).toBeCloseTo(2 * fullTile, 9)
  })
  test('tiles that are claimed: whoever is free takes the next one, and no layer waits for the one before', () => {
    const [linear] = bare.linears
    if (!linear) throw new Error('no layer')
    // Nine tiles a layer on 8 SMs: two turns each where a layer waits, 18 in three turns where none does.
    const layers = [linear, linear].map((each) => ({ ...each, columns: 900 }))
    const dealt = { ...bare, linears: layers }
    const claimed = { ...dealt, tile: { ...bare.tile, claimed: true } }
    expect(us(dealt, [64])).toBeCloseTo(4 * fullTile, 9)
    expect(us(claimed, [64])).toBeCloseTo(3 * fullTile, 9)
    // One long tile and seven short ones, and again: the SM with the first long one does not get the second as well.
    const unequal = { ...bare, linears: [{ ...linear, columns: 100 }] }
    const load = [64, 8, 8, 8, 8, 8, 8, 8]
    const twice = { sms: [8], sliceOf: new Array<number>(16).fill(0) }
    expect(us(unequal, [...load, ...load], twice)).toBeCloseTo(2 * fullTile, 9)
    expect(us({ ...unequal, tile: { ...bare.tile, claimed: true } }, [...load, ...load], twice)).toBeCloseTo(
      fullTile * 1.125,
      9,
    )
    // Not where experts are divided among slices.
    const two = { sms: [8, 8], sliceOf: [0, 1] }
    expect(us(claimed, [64, 0], two)).toBeCloseTo(us(dealt, [64, 0], two), 9)
  })
  /** Rings of a tile's weights, and bytes of one of the 8 tiles of an expert with one row tile. */
  const rings = (2 * 100 * 10) / 1000
  const tileBytes = (rows: number) => (2 * (8000 + rows * 810)) / 8
  test('an SM reads a ring of weights in each latency, for however many rows', () => {
    const reading = { ...bare, rate: [{ sms: 8, perSecond: 1e30 }], latencyUs: 5 }
    expect(us(reading, [8])).toBeCloseTo(5 * rings, 9)
    expect(us(reading, [64])).toBeCloseTo(5 * rings, 9)
    expect(us({ ...reading, tile: { ...bare.tile, bytesUnderWay: 4000 } }, [8])).toBeCloseTo((5 * rings) / 4, 9)
    // Row tiles of one expert all wait for its weights, though memory gives them once.
    expect(us({ ...reading, rate: [{ sms: 16, perSecond: 1e30 }] }, [128], { sms: [16], sliceOf: [0] })).toBeCloseTo(
      5 * rings,
      9,
    )
  })
  test('the memory: it gives no more than it has, and is slower where it is asked for nearly that', () => {
    const us5 = 5 * rings
    const reading = { ...bare, rate: [{ sms: 8, perSecond: 1e30 }], latencyUs: 5 }
    // Of a memory that has just what they ask for together, they read ∛2 times as long.
    const asked = (8 * tileBytes(8) * 1e6) / us5
    expect(us({ ...reading, memoryBytesPerSecond: asked }, [8])).toBeCloseTo(us5 * Math.cbrt(2), 6)
    expect(us({ ...reading, memoryBytesPerSecond: asked / 1e4 }, [8])).toBeCloseTo(us5 * 1e4, 3)
    // Tiles that share their weights read them from memory once for up to 8.
    const rows = (n: number) => us({ ...reading, memoryBytesPerSecond: 1e3 }, [n]) / 1e3
    expect(rows(512) - rows(64)).toBeCloseTo(2 * 448 * 810, 0)
    expect(rows(576) - rows(512)).toBeCloseTo(2 * (8000 + 64 * 810), 0)
  })
  test('what is hidden, what is not, and what tiles and steps cost besides', () => {
    const model = { ...bare, latencyUs: 50 }
    expect(us(model, [64])).toBeCloseTo(fullTile, 6)
    expect(us({ ...model, latencyUs: 100 }, [64])).toBeCloseTo(100 * rings, 6)
    expect(us({ ...model, exposed: 0.5, tileUs: 3, stepUs: 7 }, [64])).toBeCloseTo(fullTile + 25 * rings + 3 + 7, 6)
  })
  test('rows are combined by all SMs of the step, whatever their slice', () => {
    const model = { ...bare, combineBytesPerSecond: 1e6 }
    const combined = (64 * 800 * 2) / 8
    expect(us(model, [64])).toBeCloseTo(fullTile + combined, 6)
    const two = { sms: [4, 4], sliceOf: [0, 1] }
    expect(us(model, [64, 0], two) - us(bare, [64, 0], two)).toBeCloseTo(combined, 6)
    // From a memory that has less than they could read.
    expect(
      us({ ...model, memoryBytesPerSecond: 8e5 }, [64]) - us({ ...bare, memoryBytesPerSecond: 8e5 }, [64]),
    ).toBeCloseTo(combined * Math.cbrt(1001), 3)
  })
  test('slices: the slowest ends the step, and each but the first is forked', () => {
    const two = { sms: [4, 4], sliceOf: [0, 1] }
    expect(predictTiles(bare, [64, 32], two)).toEqual({ stepUs: 2 * fullTile, sliceUs: [2 * fullTile, fullTile] })
    expect(us({ ...bare, dividedUs: 5 }, [64, 32], two)).toBeCloseTo(2 * fullTile + 5, 9)
    expect(predictTiles(bare, [64, 0], two).sliceUs).toEqual([2 * fullTile, 0])
  })
  test('slices meet at the memory, as long as they run', () => {
    const own = (4 * tileBytes(64) * 1e6) / (5 * rings)
    const reading = { ...bare, rate: [{ sms: 8, perSecond: 1e30 }], latencyUs: 5, memoryBytesPerSecond: own }
    const alone = 2 * 5 * rings * Math.cbrt(2)
    const both = 2 * 5 * rings * Math.cbrt(9)
    const two = { sms: [4, 4], sliceOf: [0, 1] }
    expect(predictTiles(reading, [64, 0], two).sliceUs[0]).toBeCloseTo(alone, 6)
    expect(predictTiles(reading, [64, 64], two).sliceUs).toEqual([expect.closeTo(both, 6), expect.closeTo(both, 6)])
    // A slice with twice the work does its second half as if it were alone.
    const { sliceUs } = predictTiles(reading, [64, 64, 64], { sms: [4, 4], sliceOf: [0, 1, 1] })
    expect(sliceUs[0]).toBeCloseTo(both, 6)
    expect(sliceUs[1]).toBeCloseTo(both + alone, 6)
    // One that ends in the middle of another's turn leaves it the memory for what is left of that.
    const linears = [{ columns: 400, written: 800, depth: 10 }]
    const [short, long] = predictTiles({ ...reading, linears }, [64, 8], { sms: [4, 2], sliceOf: [0, 1] }).sliceUs
    expect(short).toBeLessThan(long ?? 0)
    expect(long).toBeLessThan(2 * (short ?? 0))
  })
  test('a slice that waits for its slowest unit asks for nothing meanwhile', () => {
    const linears = [{ columns: 100, written: 100, depth: 10 }]
    const model = { ...bare, linears, tile: { ...bare.tile, rows: 640 }, latencyUs: 20 }
    // Layers wait one by one.
    const [linear] = linears
    if (!linear) throw new Error('no layer')
    expect(us({ ...model, linears: [linear, linear] }, [640, 8], { sms: [2], sliceOf: [0, 0] })).toBeCloseTo(2560, 6)
    // A tile of 1280 us of arithmetic beside one that reads for 40; and 40 like that, in another slice, of which each asks for all that the memory has.
    const reads = 20 * rings
    const bytes = (rows: number) => 2 * (1000 + rows * 110)
    const has = bytes(8) / reads
    const [together, alone] = [bytes(640) / 1280 + 2 * has, has].map((asked) => Math.cbrt(1 + (asked / has) ** 3))
    const untilItWaits = (1280 + reads * (together ?? 0)) / 2
    const done = untilItWaits / (reads * (together ?? 0))
    const counts = [640, ...new Array<number>(41).fill(8)]
    const placement = { sms: [2, 1], sliceOf: counts.map((_, e) => (e < 2 ? 0 : 1)) }
    const { sliceUs } = predictTiles({ ...model, memoryBytesPerSecond: has * 1e6 }, counts, placement)
    expect(sliceUs[0]).toBeCloseTo(1280, 6)
    expect(sliceUs[1]).toBeCloseTo(untilItWaits + (40 - done) * reads * (alone ?? 0), 6)
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
  tile: hopperTile(64, 8192),
  linears: [
    { columns: 1536, written: 768, depth: 2048 },
    { columns: 2048, written: 2048, depth: 768 },
  ],
  bytesPerValue: 2,
  latencyUs: 1.8,
  memoryBytesPerSecond: 4.3e12,
  rate: [{ sms: 132, perSecond: 600e12 }],
  exposed: 0.2,
  tileUs: 1.5,
  stepUs: 12,
  dividedUs: 3,
  combineBytesPerSecond: 110e9,
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
    const asked: [number, number][] = []
    const tile = (rows: number, assignments: number) => {
      asked.push([rows, assignments])
      return hopperTile(rows, assignments)
    }
    const { regimes } = calibrateTiles(several(0.01, [1024]), { heldOut: false, tile })
    expect(asked).toEqual(regimes.map(({ tokens }) => [(tokens * qwen.topK) / qwen.numExperts, tokens * qwen.topK]))
    for (const [i, { model }] of regimes.entries()) expect(model.tile).toEqual(hopperTile(...(asked[i] ?? [0, 0])))
  })
  test('the tile of the kernels on compute 9.0, by rows an expert and rows in all', () => {
    expect(hopperTile(2, 64)).toMatchObject({ rows: 32, columns: 128 })
    expect(hopperTile(2.5, 64)).toMatchObject({ rows: 32, columns: 256 })
    expect(hopperTile(4, 4096)).toMatchObject({ rows: 32, columns: 256 })
    // Tiles of 64 rows are narrow, as long as there are few rows in all.
    for (const [mean, all] of [
      [5, 1024],
      [24, 1024],
      [25, 512],
      [48, 512],
    ] as const)
      expect(hopperTile(mean, all)).toMatchObject({ rows: 64, columns: 128 })
    for (const [mean, all] of [
      [5, 1025],
      [24, 1025],
      [25, 513],
      [48, 4096],
    ] as const)
      expect(hopperTile(mean, all)).toMatchObject({ rows: 64, columns: 256 })
    // One launch for both layers, whose tiles are found at their turn; then one for each, whose tiles are found ahead.
    for (const mean of [1, 4, 24, 48]) {
      const divided = { rows: 64, columns: 256, ahead: true }
      expect(hopperTile(mean, 64 * mean)).toMatchObject({ sms: 1, claimed: true, divided })
      expect(hopperTile(mean, 64 * mean).ahead).toBeUndefined()
    }
    const wide = { rows: 160, columns: 256, sms: 1 }
    for (const mean of [49, 128])
      expect(hopperTile(mean, 8192)).toMatchObject({ ...wide, claimed: true, divided: { rows: 160, ahead: true } })
    for (const mean of [129, 160]) expect(hopperTile(mean, 8192)).toMatchObject({ ...wide, ahead: true })
    expect(hopperTile(160, 8192).claimed).toBeUndefined()
    expect(hopperTile(161, 8192)).toMatchObject({ rows: 320, columns: 256, sms: 2, ahead: true })
    expect(hopperTile(161, 8192).divided).toBeUndefined()
    expect(() => hopperTile(-1, 8)).toThrow(/rows/)
    expect(() => hopperTile(1, -8)).toThrow(/assignments/)
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
