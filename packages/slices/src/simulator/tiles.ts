/**
 * A step tile by tile: what the closed form of the cost model (`cost.ts`) leaves out for the sake of decisions in microseconds. A grouped
 * kernel cuts each expert's product into tiles, and the SMs of a slice take them in turn: SM i computes tiles i, i + n, i + 2n, …. So a slice
 * with one tile more than SMs takes two tiles' time, an expert's rows cost what they are padded to, and the SM whose tiles add up to the most
 * ends the step.
 *
 *     tile        join(bytes / its part of the bandwidth, flop / rate of an SM) + tileUs
 *     bytes       those from memory + half of those from L2, which other tiles of the turn have read from memory
 *     part        smBytesPerSecond / ∛(1 + q³), with q times what the memory has asked for by the tiles of one turn together, and, to the part of
 *                 `contention`, by the SMs of other slices as long as those run
 *     slice       Σ over the linear layers of max_SM Σ its tiles
 *     step        stepUs + perSliceUs · (slices - 1) + max(max_s slice_s, all bytes / memoryBytesPerSecond)
 *
 * An expert with r rows has t = ceil(r / tile rows) row tiles of ceil(r / t / 8) · 8 rows each. Tiles of the same columns run at the same time and
 * read their weights once for up to 8 of them. `walkUs` is that of the cost model.
 */
import { join, type Placement, type StepPrediction } from '../cost.js'
import { type Curve, interpolate } from '../device.js'

/** A kernel's tile: so many rows of an expert by so many columns of its weights, by so many SMs. */
export interface TileShape {
  readonly rows: number
  readonly columns: number
  readonly sms: number
  /** That of launches whose experts are divided among slices, by as many SMs, where kernels of this tile cannot do that. @default the same */
  readonly divided?: { readonly rows: number; readonly columns: number }
}

/** One linear layer of the experts. */
export interface TiledLinear {
  /** Columns of its weights. */
  readonly columns: number
  /** Columns that it writes: half as many with a gate. */
  readonly written: number
  /** Products of each column. */
  readonly depth: number
}

/** A device's kernels and a layer's shape, as far as a step's time depends on them. */
export interface TileModel {
  readonly tile: TileShape
  readonly linears: readonly TiledLinear[]
  readonly bytesPerValue: number
  /** That one SM reads with these kernels. */
  readonly smBytesPerSecond: number
  readonly memoryBytesPerSecond: number
  /**
   * Operations a second by SMs in use, of all slices together, each its part: where power is the limit, all run slower the more there are.
   */
  readonly rate: Curve
  /** The part of the shorter of a tile's memory and arithmetic that is not hidden behind the longer, 0 to 1. */
  readonly exposed: number
  /** Microseconds that a tile costs besides. */
  readonly tileUs: number
  readonly stepUs: number
  readonly perSliceUs: number
  /** The part of what the SMs of other slices could read that a slice meets at the memory, 0 to 1. */
  readonly contention: number
  readonly walkUs: number
}

/** @internal The tiles of one linear layer in one slice, in the order in which its units take them: by expert, whose tiles are alike. */
export interface TileList {
  /** SMs, or pairs of them, that take tiles in turn. */
  readonly units: number
  /** By expert: how many tiles, and what each has to do. */
  readonly tiles: Int32Array
  /**
   * What the SMs of a tile load, as bytes from memory; and which of them are. Tiles that read the same weights at the same time, and all that read the
   * same rows, share what comes from memory: the rest is read from L2, where a byte is sooner there.
   */
  readonly bytes: Float64Array
  readonly fromMemory: Float64Array
  readonly flops: Float64Array
}

/** @internal A step's tiles. */
export interface StepTiles {
  readonly slices: readonly { readonly sms: number; readonly linears: readonly TileList[] }[]
  /** Experts with work. */
  readonly present: number
  readonly bytes: number
}

/** A byte that another SM has just read takes so much of the time of one from memory: L2 is about twice as near. */
const CACHED = 0.5
/** Row tiles that run at the same time and so read their weights once. */
const GROUP = 8

/** @internal What there is to do, whatever the device's speed. */
export function tilesOf(
  { tile, linears, bytesPerValue }: Pick<TileModel, 'tile' | 'linears' | 'bytesPerValue'>,
  counts: ArrayLike<number>,
  { sms, sliceOf }: Placement,
): StepTiles {
  const cut = sms.length > 1 ? (tile.divided ?? tile) : tile
  let bytesOfAll = 0
  let present = 0
  for (let e = 0; e < sliceOf.length; e++) if ((counts[e] ?? 0) > 0) present++
  const slices = sms.map((n, s) => ({
    sms: n,
    linears: linears.map(({ columns, written, depth }): TileList => {
      const across = Math.ceil(columns / cut.columns)
      const tiles: number[] = []
      const bytes: number[] = []
      const fromMemory: number[] = []
      const flops: number[] = []
      for (let e = 0; e < sliceOf.length; e++) {
        const rows = counts[e] ?? 0
        if (sliceOf[e] !== s || rows <= 0) continue
        const down = Math.ceil(rows / cut.rows)
        const padded = Math.ceil(rows / down / 8) * 8
        const weights = columns * depth * Math.ceil(down / GROUP)
        const moved = bytesPerValue * (weights + rows * (depth + written))
        tiles.push(down * across)
        const fresh = moved / (down * across)
        const loaded = bytesPerValue * ((columns / across) * depth + (rows / down) * (depth + written / across))
        bytes.push(fresh + CACHED * (loaded - fresh))
        fromMemory.push(fresh)
        flops.push((2 * padded * columns * depth) / across)
        bytesOfAll += moved
      }
      return {
        units: Math.max(1, Math.floor(n / tile.sms)),
        tiles: Int32Array.from(tiles),
        bytes: Float64Array.from(bytes),
        fromMemory: Float64Array.from(fromMemory),
        flops: Float64Array.from(flops),
      }
    }),
  }))
  return { slices, present, bytes: bytesOfAll }
}

/** What of the parameters says how fast a device is. */
export type TileSpeed = Omit<TileModel, 'linears' | 'bytesPerValue'>

/**
 * How much longer reads take that together ask for so many times what the memory has: 1 for few, as many times for many, and between them no edge, as
 * nobody waits in line for a memory that is asked for little.
 */
const slowed = (asked: number): number => Math.cbrt(1 + asked * asked * asked)

/** What of a slice's tiles depends on the others. */
interface Pace {
  /** Microseconds of a byte where the memory is asked for little, and of an operation. */
  readonly perByte: number
  readonly perFlop: number
  /** Bytes a second that other slices ask for meanwhile. */
  readonly others: number
}

/** Microseconds of a linear layer in a slice: the unit whose tiles add up to the most. */
function linearUs(list: TileList, model: TileSpeed, { perByte, perFlop, others }: Pace): number {
  const { units, tiles, bytes, fromMemory, flops } = list
  const own = model.smBytesPerSecond * model.tile.sms
  const busy = new Float64Array(units)
  // A turn is a tile for each unit: from `expert`, of which `done` tiles are done, to `last`, of which `through` will be.
  for (let expert = 0, done = 0; expert < tiles.length; ) {
    // What the turn asks of the memory: tiles that compute for longer than they read ask for less.
    let [asked, free, last, through] = [0, units, expert, done]
    while (free > 0 && last < tiles.length) {
      const taken = Math.min(free, (tiles[last] ?? 0) - through)
      const memory = (bytes[last] ?? 0) * perByte
      const reads = own * ((fromMemory[last] ?? 0) / (bytes[last] ?? 1))
      asked += taken * reads * Math.min(1, memory / Math.max(memory, (flops[last] ?? 0) * perFlop))
      free -= taken
      through += taken
      if (through === tiles[last]) [last, through] = [last + 1, 0]
    }
    const slower = perByte * slowed((asked + others) / model.memoryBytesPerSecond)
    for (let unit = 0; unit < units && expert < tiles.length; ) {
      const taken = Math.min(units - unit, (tiles[expert] ?? 0) - done)
      const us = join((bytes[expert] ?? 0) * slower, (flops[expert] ?? 0) * perFlop, model.exposed) + model.tileUs
      for (const end = unit + taken; unit < end; unit++) busy[unit] = (busy[unit] ?? 0) + us
      done += taken
      if (done === tiles[expert]) [expert, done] = [expert + 1, 0]
    }
  }
  let longest = 0
  for (const us of busy) if (us > longest) longest = us
  return longest
}

/** @internal */
export function timeOf({ slices, present, bytes }: StepTiles, model: TileSpeed): StepPrediction {
  let total = 0
  for (const { sms } of slices) total += sms
  const perByte = 1e6 / (model.smBytesPerSecond * model.tile.sms)
  const perFlop = (1e6 * total) / (interpolate(model.rate, total) * model.tile.sms)
  const sliceUs = slices.map(() => 0)
  const left = slices.map(() => 1)
  let running = [...slices.entries()]
  // Until the first slice ends; then those that are left do the rest with one fewer at the memory.
  for (let now = 0; running.length > 0; ) {
    let asking = 0
    for (const [, { sms }] of running) asking += sms
    const rest = running.map(([s, { sms, linears }]) => {
      const others = model.contention * model.smBytesPerSecond * (asking - sms)
      let us = 0
      for (const linear of linears) us += linearUs(linear, model, { perByte, perFlop, others })
      if (us > 0 && slices.length > 1) us += (model.walkUs * present) / sms
      return us * (left[s] ?? 0)
    })
    const first = Math.min(...rest)
    now += first
    running = running.filter(([s], i) => {
      const us = rest[i] ?? 0
      sliceUs[s] = now
      left[s] = us > 0 ? (left[s] ?? 0) * (1 - first / us) : 0
      return us > first
    })
  }
  const inside = Math.max(...sliceUs, (bytes * 1e6) / model.memoryBytesPerSecond)
  return { stepUs: inside + model.stepUs + model.perSliceUs * Math.max(0, slices.length - 1), sliceUs }
}

/**
 * Microseconds of a step, tile by tile. Some tens of microseconds for a thousand tiles: for the simulator's clock, not for decisions.
 * @param counts - assignments by expert
 */
export function predictTiles(model: TileModel, counts: ArrayLike<number>, placement: Placement): StepPrediction {
  return timeOf(tilesOf(model, counts, placement), model)
}
