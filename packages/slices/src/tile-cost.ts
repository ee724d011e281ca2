/**
 * The cost model of decisions by a device's tiles: an expert is worth the time of all its tiles on one SM, and a slice divides what its experts are worth
 * by its SMs.
 *
 *     worth(a)  = Σ_tiles join(weights / bytesUnderWay · latencyUs · slower, flop / rate of an SM) + tileUs
 *     slice     = Σ_e worth(a_e) / n
 *
 * That is the simulator's clock without turns: it does not know that one tile more than SMs takes two tiles' time, which no cut can foresee of
 * loads that differ from step to step. It does know what a smooth roofline does not: that every row tile of an expert waits for its weights anew, so that
 * an SM reads at the pace of its own ring, wherever the weights are, long before the memory is asked for all it has.
 */
import type { CostModel } from './cost.js'
import { type Curve, interpolate } from './device.js'
import { join, slowed } from './roofline.js'
import { type DividedTile, multiplied, readsOf, type TileModel, togetherOf } from './tile-model.js'

const sum = (values: readonly number[]) => values.reduce((total, x) => total + x, 0)

/** All SMs of the device that a model is of. */
const smsOf = ({ rate }: TileModel): number => rate.at(-1)?.sms ?? 1

const costs = new WeakMap<TileModel, CostModel>()

/**
 * The cost model by which policies arrange what a tile model times: what `calibrateTiles` of the simulator found of one regime, or one's own. Of the same
 * model it is the same object, so it may be asked for at each decision: `cost: (assignments) => tileCost(tilesFor(regimes, assignments))`.
 */
export function tileCost(model: TileModel): CostModel {
  const cost = costs.get(model) ?? made(model)
  costs.set(model, cost)
  return cost
}

function made(model: TileModel): CostModel {
  const { tile, linears, bytesPerValue, latencyUs, memoryBytesPerSecond: memory } = model
  const sms = smsOf(model)
  const perSm = ((tile.divided ?? tile).bytesUnderWay * 1e6) / (latencyUs * tile.sms)
  const combining = sms * (model.combineBytesPerSecond ?? 0)
  const combined = bytesPerValue * (linears.at(-1)?.written ?? 0)
  return {
    // SMs read their rings until the memory gives no more.
    bandwidth: [
      { sms: Math.min(sms / 2, memory / perSm), perSecond: Math.min((sms / 2) * perSm, memory) },
      { sms, perSecond: Math.min(sms * perSm, memory) },
    ],
    rate: model.rate,
    weightBytes: bytesPerValue * sum(linears.map(({ columns, depth }) => columns * depth)),
    assignmentBytes: bytesPerValue * sum(linears.map(({ depth, written }) => depth + written)),
    assignmentFlop: 2 * sum(linears.map(({ columns, depth }) => columns * depth)),
    overheadUs: 0,
    exposed: model.exposed,
    stepUs: model.stepUs,
    dividedUs: model.dividedUs,
    perAssignmentUs:
      (model.perAssignmentUs ?? 0) + (combining > 0 ? (1e6 * combined * slowed(combining / memory)) / combining : 0),
    tiles: model,
  }
}

/** Tiles of a linear layer that so many shares of an expert's rows take together, and operations of a share's row in one of them. */
interface SharesCost {
  readonly tiles: number
  readonly rowFlop: number
}

interface LinearCost {
  /** Microseconds of a tile's weights, where the memory is asked for little. */
  readonly ringsUs: number
  /** By shares that are left, from none. */
  readonly left: readonly SharesCost[]
  /** Of as many shares as SMs. */
  readonly whole: SharesCost
}

/** @internal What experts are worth by one tile model, in microseconds of one SM. */
export class TileWorth {
  readonly #linears: readonly LinearCost[]
  readonly #memory: number
  readonly #exposed: number
  readonly #tileUs: number
  /** SMs that share a tile; of one of them the rows at most. */
  readonly #together: number
  readonly #rows: number
  readonly #rate: Curve
  readonly #tileSms: number
  /** Of an expert's weights, and of a row of it. */
  readonly #weightBytes: number
  readonly #rowBytes: number
  /** By expert: row tiles of all the SMs that share one, shares that are left, and rows of a share as they are multiplied. */
  #whole = new Float64Array(0)
  #left = new Uint8Array(0)
  #share = new Float64Array(0)
  /** Bytes that the memory gives for the last load. */
  bytes = 0

  /** @param divided - whether experts are divided among slices */
  constructor(model: TileModel, divided: boolean) {
    const { tile, linears, bytesPerValue } = model
    const cut: DividedTile = divided ? (tile.divided ?? tile) : tile
    const together = togetherOf(tile)
    this.#linears = linears.map(({ columns, depth }) => {
      const across = Math.ceil(columns / cut.columns)
      const ringsUs = (bytesPerValue * columns * depth * model.latencyUs) / (across * cut.bytesUnderWay)
      const costOf = (shares: number): SharesCost => {
        const tiles = Math.ceil((shares * across) / together)
        return { tiles, rowFlop: shares === 0 ? 0 : (2 * columns * depth * shares) / tiles }
      }
      return { ringsUs, left: Array.from({ length: together }, (_, shares) => costOf(shares)), whole: costOf(together) }
    })
    this.#memory = model.memoryBytesPerSecond
    this.#exposed = model.exposed
    this.#tileUs = cut.ahead === true ? 0 : model.tileUs
    this.#together = together
    this.#rows = cut.rows / together
    this.#rate = model.rate
    this.#tileSms = tile.sms
    this.#weightBytes = bytesPerValue * sum(linears.map(({ columns, depth }) => columns * depth))
    this.#rowBytes = bytesPerValue * sum(linears.map(({ depth, written }) => depth + written))
  }

  /**
   * Fills in what each expert is worth in a load; of an expected count below 1, with the probability that there is one.
   * @param sms - at work at the same time: they share the memory, and the power
   */
  fill(load: Float64Array, experts: number, worth: Float64Array, sms: number): void {
    this.#cut(load, experts)
    const perFlop = (1e6 * sms) / (interpolate(this.#rate, sms) * this.#tileSms)
    const alone = this.#price(load, experts, worth, 1, perFlop)
    const asked = alone > 0 ? (this.bytes * sms * 1e6) / (alone * this.#memory) : 0
    this.#price(load, experts, worth, slowed(asked), perFlop)
  }

  /** What one expert is worth, alone on so many SMs. */
  of(assignments: number, sms: number): number {
    const worth = new Float64Array(1)
    this.fill(Float64Array.of(assignments), 1, worth, sms)
    return worth[0] ?? 0
  }

  #cut(load: Float64Array, experts: number): void {
    if (this.#whole.length < experts) {
      this.#whole = new Float64Array(experts)
      this.#left = new Uint8Array(experts)
      this.#share = new Float64Array(experts)
    }
    const together = this.#together
    let bytes = 0
    for (let e = 0; e < experts; e++) {
      const a = load[e] ?? 0
      this.#left[e] = 0
      this.#whole[e] = 0
      if (a <= 0) continue
      const rows = Math.max(1, a)
      const shares = Math.ceil(rows / this.#rows)
      const left = shares % together
      const whole = (shares - left) / together
      this.#whole[e] = whole
      this.#left[e] = left
      this.#share[e] = multiplied(rows) / shares
      bytes += Math.min(1, a) * (this.#weightBytes * (readsOf(whole, together) + left) + this.#rowBytes * rows)
    }
    this.bytes = bytes
  }

  /** @param slower - how much longer weights take than where the memory is asked for little */
  #price(load: Float64Array, experts: number, worth: Float64Array, slower: number, perFlop: number): number {
    const exposed = this.#exposed
    const tileUs = this.#tileUs
    const tileSms = this.#tileSms
    worth.fill(0, 0, experts)
    let all = 0
    for (const { ringsUs, whole, left } of this.#linears) {
      const memory = ringsUs * slower
      for (let e = 0; e < experts; e++) {
        const share = (this.#share[e] ?? 0) * perFlop
        let us = (this.#whole[e] ?? 0) * whole.tiles * (join(memory, share * whole.rowFlop, exposed) + tileUs)
        const rest = left[this.#left[e] ?? 0]
        if (rest !== undefined && rest.tiles > 0) {
          us += rest.tiles * (join(memory, share * rest.rowFlop, exposed) + tileUs)
        }
        us *= Math.min(1, load[e] ?? 0) * tileSms
        worth[e] = (worth[e] ?? 0) + us
        all += us
      }
    }
    return all
  }
}

const worths = new WeakMap<TileModel, [TileWorth?, TileWorth?]>()

/** @internal Of each model one: its arrays are kept from one load to the next. */
export function worthOf(model: TileModel, divided: boolean): TileWorth {
  const both = worths.get(model) ?? []
  worths.set(model, both)
  const index = divided ? 1 : 0
  const worth = both[index] ?? new TileWorth(model, divided)
  both[index] = worth
  return worth
}
