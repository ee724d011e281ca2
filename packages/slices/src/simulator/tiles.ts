/**
 * A step tile by tile: what the closed form of the cost model (`cost.ts`) leaves out for the sake of decisions in microseconds. A grouped
 * kernel cuts each expert's product into tiles, which the SMs of a slice take in turn. So a slice with one tile more than SMs takes two tiles'
 * time, an expert's rows cost what they are padded to, and the SM whose tiles add up to the most ends the step.
 *
 *     tile        join(weights / bytesUnderWay · latencyUs · slower, flop / rate of an SM) + tileUs
 *     slower      ∛(1 + q³), with q times what the memory has asked for by all tiles that run, of all slices
 *     step        stepUs + dividedUs (of several slices) + perAssignmentUs · assignments + combine
 *                 + max(max_s slice_s, all bytes / memoryBytesPerSecond)
 *
 * An SM has the buffers of one ring under way and asks for the next weights when it has used some: it reads a ring in each latency, wherever the
 * weights are, and however many rows they are for. An expert with r rows has t = ceil(r / tile rows) row tiles, which together multiply
 * ceil(r / 8) · 8 rows. Tiles of the same columns run at the same time: all of them wait for the weights, but the memory gives them once for up to 8.
 *
 * Two SMs that share a tile cut r into t = ceil(r / rows of one SM) shares, of which each takes one. If t is odd, the last share is left: of that they
 * compute two columns of tiles at a time, one each, and read twice as many weights.
 */
import type { Placement, StepPrediction } from '../cost.js'
import { alikeOf, type DividedTile, type TileModel, togetherOf } from '../tile-model.js'
import { timeOf } from './tile-clock.js'

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
  readonly assignments: number
  /** Bytes of the rows that are combined. */
  readonly combined: number
}

/** @internal What there is to do, whatever the device's speed. */
export function tilesOf(
  { tile, linears, bytesPerValue }: Pick<TileModel, 'tile' | 'linears' | 'bytesPerValue'>,
  counts: ArrayLike<number>,
  { sms, sliceOf }: Placement,
): StepTiles {
  const several = sms.length > 1
  const together = togetherOf(tile)
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
        for (const alike of alikeOf(rows, cut, together, across)) {
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
    assignments,
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
