/**
 * A step tile by tile: what the closed form of the cost model (`cost.ts`) leaves out for the sake of decisions in microseconds. A grouped
 * kernel cuts each expert's product into tiles, which the SMs of a slice take in turn. So a slice with one tile more than SMs takes two tiles'
 * time, an expert's rows cost what they are padded to, and the SM whose tiles add up to the most ends the step.
 *
 *     tile        join(weights / bytesUnderWay · latencyUs · slower, flop / rate of an SM) + tileUs
 *     slower      ∛(1 + q³), with q times what the memory has asked for by all tiles that run, of all slices
 *     step        stepUs + perSliceUs · (slices - 1) + max(max_s slice_s, all bytes / memoryBytesPerSecond) + combine
 *
 * An SM has the buffers of one ring under way and asks for the next weights when it has used some: it reads a ring in each latency, wherever the
 * weights are, and however many rows they are for. An expert with r rows has t = ceil(r / tile rows) row tiles, which together multiply
 * ceil(r / 8) · 8 rows. Tiles of the same columns run at the same time: all of them wait for the weights, but the memory gives them once for up to 8.
 *
 * Two SMs that share a tile cut r into t = ceil(r / rows of one SM) shares, of which each takes one. If t is odd, the last share is left: of that they
 * compute two columns of tiles at a time, one each, and read twice as many weights.
 */
import type { Placement, StepPrediction } from '../cost.js'
import type { Curve } from '../device.js'
import { timeOf } from './tile-clock.js'

/** A tile of launches whose experts are divided among slices. */
export interface DividedTile {
  readonly rows: number
  readonly columns: number
  readonly bytesUnderWay: number
  /**
   * A warp finds tiles ahead of their turn, which then cost no `tileUs`.
   * @default false
   */
  readonly ahead?: boolean
}

/** A kernel's tile: so many rows of an expert by so many columns of its weights, by so many SMs. */
export interface TileShape extends DividedTile {
  readonly sms: number
  /** Weights that are under way to a tile at a time: all buffers of its ring. */
  readonly bytesUnderWay: number
  /**
   * Both linear layers are one launch, whose SMs take the next tile when they are free: no layer waits for the slowest SM of the one before it.
   * Otherwise, and wherever experts are divided among slices, SM i computes tiles i, i + n, i + 2n, … of a layer.
   * @default false
   */
  readonly claimed?: boolean
  /**
   * Stands in, by as many SMs, where experts are divided among slices and kernels of this tile cannot do that.
   * @default the same
   */
  readonly divided?: DividedTile
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
  /** From asking for weights to having used them, where the memory is asked for little. */
  readonly latencyUs: number
  readonly memoryBytesPerSecond: number
  /**
   * Operations a second by SMs in use, of all slices together, each its part: where power is the limit, all run slower the more there are.
   */
  readonly rate: Curve
  /** The part of the shorter of a tile's memory and arithmetic that is not hidden behind the longer, 0 to 1. */
  readonly exposed: number
  /** Microseconds that a tile costs besides: finding it and its rows, and what it writes. */
  readonly tileUs: number
  readonly stepUs: number
  readonly perSliceUs: number
  /**
   * Bytes a second with which one SM reads the rows of the last layer to combine them; all SMs of the step do, whatever their slice.
   * @default combining is part of stepUs
   */
  readonly combineBytesPerSecond?: number
}

/** @internal The tiles of one linear layer in one slice, in the order in which its units take them: by expert, those that are alike together. */
export interface TileList {
  /** SMs, or pairs of them, that take tiles. */
  readonly units: number
  /** Of those that are alike: how many tiles, and what each has to do. */
  readonly tiles: Int32Array
  /** How often a tile's ring is filled. */
  readonly rings: Float64Array
  /** Bytes of a tile; tiles that share their weights have a part of them each. */
  readonly fromMemory: Float64Array
  readonly flops: Float64Array
}

/** @internal A step's tiles. */
export interface StepTiles {
  readonly slices: readonly { readonly sms: number; readonly linears: readonly TileList[] }[]
  readonly claimed: boolean
  /** Whether tiles cost `tileUs`. */
  readonly costly: boolean
  readonly bytes: number
  /** Bytes of the rows that are combined. */
  readonly combined: number
}

/** Row tiles that run at the same time and so read their weights once: of one SM, and of several together. */
const GROUP = 8
const GROUP_OF_SEVERAL = 6

/** Tiles of an expert that are alike. */
interface Alike {
  readonly tiles: number
  /** Rows of them all: as they are, and as they are multiplied. */
  readonly rows: number
  readonly multiplied: number
  /** How often the memory gives all of the expert's weights for them. */
  readonly reads: number
}

/** An expert's rows in `across` columns of tiles. */
function alikeOf(rows: number, cut: DividedTile, sms: number, across: number): Alike[] {
  const together = Math.max(1, Math.floor(sms))
  const shares = Math.ceil((rows * together) / cut.rows)
  const left = shares % together
  const whole = (shares - left) / together
  const of = (some: number) => ({
    rows: (rows * some) / shares,
    multiplied: (Math.ceil(rows / 8) * 8 * some) / shares,
  })
  const groups = Math.ceil(whole / (together > 1 ? GROUP_OF_SEVERAL : GROUP))
  return [
    { tiles: whole * across, ...of(shares - left), reads: groups },
    { tiles: Math.ceil((left * across) / together), ...of(left), reads: left },
  ].filter(({ tiles }) => tiles > 0)
}

/** @internal What there is to do, whatever the device's speed. */
export function tilesOf(
  { tile, linears, bytesPerValue }: Pick<TileModel, 'tile' | 'linears' | 'bytesPerValue'>,
  counts: ArrayLike<number>,
  { sms, sliceOf }: Placement,
): StepTiles {
  const several = sms.length > 1
  const cut: DividedTile = several ? (tile.divided ?? tile) : tile
  let bytesOfAll = 0
  let assignments = 0
  for (let e = 0; e < sliceOf.length; e++) assignments += counts[e] ?? 0
  const slices = sms.map((n, s) => ({
    sms: n,
    linears: linears.map(({ columns, written, depth }): TileList => {
      const across = Math.ceil(columns / cut.columns)
      const rings = (bytesPerValue * columns * depth) / (across * cut.bytesUnderWay)
      const tiles: number[] = []
      const fromMemory: number[] = []
      const flops: number[] = []
      for (let e = 0; e < sliceOf.length; e++) {
        const rows = counts[e] ?? 0
        if (sliceOf[e] !== s || rows <= 0) continue
        for (const alike of alikeOf(rows, cut, tile.sms, across)) {
          const weights = columns * depth * alike.reads
          const moved = bytesPerValue * (weights + alike.rows * (depth + written))
          tiles.push(alike.tiles)
          fromMemory.push(moved / alike.tiles)
          flops.push((2 * alike.multiplied * columns * depth) / alike.tiles)
          bytesOfAll += moved
        }
      }
      return {
        units: Math.max(1, Math.floor(n / tile.sms)),
        tiles: Int32Array.from(tiles),
        rings: new Float64Array(tiles.length).fill(rings),
        fromMemory: Float64Array.from(fromMemory),
        flops: Float64Array.from(flops),
      }
    }),
  }))
  return {
    slices,
    claimed: !several && tile.claimed === true,
    costly: cut.ahead !== true,
    bytes: bytesOfAll,
    combined: bytesPerValue * assignments * (linears.at(-1)?.written ?? 0),
  }
}

/**
 * Microseconds of a step, tile by tile. Some tens of microseconds for a thousand tiles: for the simulator's clock, not for decisions.
 * @param counts - assignments by expert
 */
export function predictTiles(model: TileModel, counts: ArrayLike<number>, placement: Placement): StepPrediction {
  return timeOf(tilesOf(model, counts, placement), model)
}
