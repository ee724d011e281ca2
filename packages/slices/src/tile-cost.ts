/**
 * The cost model of decisions by a device's tiles: an expert is worth the time of all its tiles on one SM, and a slice divides what its experts are worth
 * by its SMs.
 *
 *     worth(a)  = Σ_tiles join(weights / bytesUnderWay · latencyUs · slower, flop / rate of an SM) + tileUs
 *     slice     = Σ_e worth(a_e) / n
 *
 * with rows in eights, as they are multiplied, and `slower`, by what all SMs ask of the memory together, to the per cent.
 *
 * That is the simulator's clock without turns: it does not know that one tile more than SMs takes two tiles' time, which no cut can foresee of
 * loads that differ from step to step. It does know what a smooth roofline does not: that every row tile of an expert waits for its weights anew, so that
 * an SM reads at the pace of its own ring, wherever the weights are, long before the memory is asked for all it has.
 */
import type { CostModel } from './cost.js'
import { type Curve, interpolate } from './device.js'
import { join, slowed } from './roofline.js'
import { type DividedTile, readsOf, type TileModel, togetherOf } from './tile-model.js'

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

/** Longest tables: rows in eights. Loads above are worked out each time. */
const mostEights = 8192
/** Tables of one model that are kept; then all are made anew. */
const mostTables = 64

/**
 * What experts are worth by one tile model, in microseconds of one SM.
 *
 * A decision asks for hundreds of experts and has microseconds. Rows are multiplied in eights, so an expert's worth is looked up by those in a table,
 * which is filled as loads ask for it; of each number of SMs and each per cent by which weights take longer there is one. @internal
 */
export class TileWorth {
  readonly #linears: readonly LinearCost[]
  readonly #memory: number
  readonly #exposed: number
  readonly #tileUs: number
  /** SMs that share a tile, and rows of one of them at most. */
  readonly #together: number
  readonly #rows: number
  readonly #rate: Curve
  readonly #tileSms: number
  /** Of an expert's weights, and of a row of it. */
  readonly #weightBytes: number
  readonly #rowBytes: number
  /** Worth by rows in eights, 0 where nobody has asked; by per cent and SMs. */
  #tables = new Map<number, Float64Array>()
  /** How often the memory gives an expert's weights, likewise. */
  readonly #reads = new Float64Array(mostEights)
  /** Of the last load: rows in eights by expert. */
  #eights = new Int32Array(0)
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
    if (this.#eights.length < experts) this.#eights = new Int32Array(experts)
    const eights = this.#eights
    const reads = this.#reads
    const alone = this.#table(sms, 100)
    let all = 0
    let weights = 0
    let rows = 0
    for (let e = 0; e < experts; e++) {
      const a = load[e] ?? 0
      if (a <= 0) {
        eights[e] = 0
        continue
      }
      const part = Math.min(1, a)
      const n = Math.ceil(a / 8)
      eights[e] = n
      rows += a
      weights += part * (n < mostEights ? reads[n] || this.#readsOf(n) : this.#readsOf(n))
      all += part * (n < mostEights ? alone[n] || this.#fillIn(alone, n, sms, 100) : this.#worth(n, sms, 100))
    }
    this.bytes = this.#weightBytes * weights + this.#rowBytes * rows
    const asked = all > 0 ? (this.bytes * sms * 1e6) / (all * this.#memory) : 0
    const percent = Math.round(100 * Math.min(1e6, slowed(asked)))
    const table = this.#table(sms, percent)
    for (let e = 0; e < experts; e++) {
      const n = eights[e] ?? 0
      if (n === 0) {
        worth[e] = 0
        continue
      }
      const a = load[e] ?? 0
      const us = n < mostEights ? table[n] || this.#fillIn(table, n, sms, percent) : this.#worth(n, sms, percent)
      worth[e] = a < 1 ? a * us : us
    }
  }

  /** What one expert is worth, alone on so many SMs. */
  of(assignments: number, sms: number): number {
    const worth = new Float64Array(1)
    this.fill(Float64Array.of(assignments), 1, worth, sms)
    return worth[0] ?? 0
  }

  #table(sms: number, percent: number): Float64Array {
    const key = percent * 2 ** 17 + sms
    let table = this.#tables.get(key)
    if (table === undefined) {
      if (this.#tables.size === mostTables) this.#tables.clear()
      table = new Float64Array(mostEights)
      this.#tables.set(key, table)
    }
    return table
  }

  #fillIn(table: Float64Array, eights: number, sms: number, percent: number): number {
    const us = this.#worth(eights, sms, percent)
    table[eights] = us
    return us
  }

  /** Row tiles of all the SMs that share one, and shares that are left. */
  #cut(eights: number): { shares: number; whole: number; left: number } {
    const shares = Math.ceil((8 * eights) / this.#rows)
    const left = shares % this.#together
    return { shares, whole: (shares - left) / this.#together, left }
  }

  #readsOf(eights: number): number {
    const { whole, left } = this.#cut(eights)
    const reads = readsOf(whole, this.#together) + left
    if (eights < mostEights) this.#reads[eights] = reads
    return reads
  }

  #worth(eights: number, sms: number, percent: number): number {
    const { shares, whole, left } = this.#cut(eights)
    const perFlop = (1e6 * sms) / (interpolate(this.#rate, sms) * this.#tileSms)
    const share = ((8 * eights) / shares) * perFlop
    let us = 0
    for (const linear of this.#linears) {
      const memory = (linear.ringsUs * percent) / 100
      const of = (row: number, { tiles, rowFlop }: SharesCost) =>
        row * tiles * (join(memory, share * rowFlop, this.#exposed) + this.#tileUs)
      us += of(whole, linear.whole)
      const rest = linear.left[left]
      if (rest !== undefined) us += of(1, rest)
    }
    return us * this.#tileSms
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
