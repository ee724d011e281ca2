/**
 * What a grouped kernel's tiles are, and how an expert's rows are cut into them: what the simulator's clock (`simulator/tiles.ts`, tile by tile) and the
 * cost model of decisions (`tile-cost.ts`, expert by expert) both go by.
 */
import type { Curve } from './device.js'

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
  /** Besides, where experts are divided among slices, however many: fork and join, and a launch more where layers share one otherwise. */
  readonly dividedUs: number
  /**
   * Microseconds that each assignment costs besides: routing, counting.
   * @default 0
   */
  readonly perAssignmentUs?: number
  /**
   * Bytes a second with which one SM reads the rows of the last layer to combine them; all SMs of the step do, whatever their slice.
   * @default combining is part of stepUs
   */
  readonly combineBytesPerSecond?: number
}

/** Row tiles that run at the same time and so read their weights once: of one SM, and of several together. */
const GROUP = 8
const GROUP_OF_SEVERAL = 6

/** @internal SMs that share a tile; of several tiles on one SM each is by itself. */
export const togetherOf = ({ sms }: Pick<TileShape, 'sms'>): number => Math.max(1, Math.floor(sms))

/** @internal Rows as they are multiplied: in eights. */
export const multiplied = (rows: number): number => Math.ceil(rows / 8) * 8

/** @internal How often the memory gives an expert's weights for so many whole row tiles. */
export const readsOf = (whole: number, together: number): number =>
  Math.ceil(whole / (together > 1 ? GROUP_OF_SEVERAL : GROUP))

/** @internal Tiles of an expert that are alike. */
export interface Alike {
  readonly tiles: number
  /** Rows of them all: as they are, and as they are multiplied. */
  readonly rows: number
  readonly multiplied: number
  /** How often the memory gives all of the expert's weights for them. */
  readonly reads: number
}

/** @internal An expert's rows in `across` columns of tiles. */
export function alikeOf(rows: number, cut: DividedTile, together: number, across: number): Alike[] {
  const shares = Math.ceil((rows * together) / cut.rows)
  const left = shares % together
  const whole = (shares - left) / together
  const of = (some: number) => ({ rows: (rows * some) / shares, multiplied: (multiplied(rows) * some) / shares })
  return [
    { tiles: whole * across, ...of(shares - left), reads: readsOf(whole, together) },
    { tiles: Math.ceil((left * across) / together), ...of(left), reads: left },
  ].filter(({ tiles }) => tiles > 0)
}
