/** How long a step's tiles take (`tiles.ts`): slices in motion, side by side, which meet at the memory. */
import type { StepPrediction } from '../cost.js'
import { interpolate } from '../device.js'
import { join, slowed } from '../roofline.js'
import type { TileModel } from '../tile-model.js'
import type { StepTiles, TileList } from './tiles.js'

/** @internal What of the parameters says how fast a device is. */
export type TileSpeed = Omit<TileModel, 'linears' | 'bytesPerValue'>

/** Tiles of one expert that units `from` to `to` - 1 have at the same time, and what each takes where the memory is asked for little. */
interface Batch {
  readonly from: number
  readonly to: number
  readonly memoryUs: number
  readonly computeUs: number
}

/** What a tile takes. */
class Pace {
  readonly #perFlop: number
  readonly #model: TileSpeed
  readonly #tileUs: number

  constructor(model: TileSpeed, sms: number, costly: boolean) {
    this.#model = model
    this.#perFlop = (1e6 * sms) / (interpolate(model.rate, sms) * model.tile.sms)
    this.#tileUs = costly ? model.tileUs : 0
  }

  us({ memoryUs, computeUs }: Batch, slower: number): number {
    return join(memoryUs * slower, computeUs, this.#model.exposed) + this.#tileUs
  }
  batch({ rings, flops }: TileList, expert: number, from: number, to: number): Batch {
    const memoryUs = (rings[expert] ?? 0) * this.#model.latencyUs
    return { from, to, memoryUs, computeUs: (flops[expert] ?? 0) * this.#perFlop }
  }
  /** Of tiles that ask for so many bytes a microsecond together, where the memory is asked for little. */
  slower(asked: number): number {
    return slowed((asked * 1e6) / this.#model.memoryBytesPerSecond)
  }
}

/** Turn by turn through a slice's layers: a turn is a tile for each unit. */
class Turns {
  /** Of the turn; none behind the last one of all layers. */
  batches: readonly Batch[] = []
  /** Units that have a tile in it. */
  taken = 0
  /** Bytes a microsecond that they ask for together. */
  asked = 0
  #expert = 0
  #done = 0
  readonly #lists: readonly TileList[]
  readonly #pace: Pace

  constructor(lists: readonly TileList[], pace: Pace) {
    this.#lists = lists
    this.#pace = pace
  }

  /** The next turn of a layer, which may go on in the layers behind it up to `last`. False: there are no more. */
  next(layer: number, last: number): boolean {
    const batches: Batch[] = []
    let [asked, taken] = [0, 0]
    for (let at = layer; at <= last; at++) {
      const list = this.#lists[at]
      if (list === undefined) break
      // Layers that are gone through together have one row of experts behind the other.
      const skipped = this.#before(layer, at)
      while (taken < list.units && this.#expert - skipped < list.tiles.length) {
        const expert = this.#expert - skipped
        const more = Math.min(list.units - taken, (list.tiles[expert] ?? 0) - this.#done)
        const batch = this.#pace.batch(list, expert, taken, taken + more)
        batches.push(batch)
        asked += (more * (list.fromMemory[expert] ?? 0)) / this.#pace.us(batch, 1)
        taken += more
        this.#done += more
        if (this.#done === list.tiles[expert]) [this.#expert, this.#done] = [this.#expert + 1, 0]
      }
    }
    this.batches = batches
    this.taken = taken
    this.asked = asked
    if (taken === 0) this.#expert = 0
    return taken > 0
  }
  #before(layer: number, at: number): number {
    let experts = 0
    for (let l = layer; l < at; l++) experts += this.#lists[l]?.tiles.length ?? 0
    return experts
  }
}

/** A slice whose units have tiles i, i + n, i + 2n, … of a layer, and wait for one another at its end. */
class Dealt {
  readonly #turns: Turns
  readonly #pace: Pace
  readonly #layers: number
  /** Microseconds of each unit's tiles in this layer, and of the slice since it began. */
  readonly #busy: Float64Array
  #elapsed = 0
  #layer = 0
  /** The part of the turn that is left; microseconds that the layer's slowest unit still takes. */
  #left = 0
  #waiting = 0
  ended = false

  constructor(lists: readonly TileList[], pace: Pace) {
    this.#turns = new Turns(lists, pace)
    this.#pace = pace
    this.#layers = lists.length
    this.#busy = new Float64Array(lists[0]?.units ?? 1)
    this.#next()
  }

  /** Bytes a microsecond: none while it waits. */
  get asked(): number {
    return this.#turns.asked
  }
  /** Microseconds to the next change, if nothing changes elsewhere. */
  until(slower: number): number {
    if (this.#waiting > 0) return this.#waiting
    let us = 0
    for (const batch of this.#turns.batches) us += (batch.to - batch.from) * this.#pace.us(batch, slower)
    return (us / this.#turns.taken) * this.#left
  }
  /** @param until what `until` said */
  advance(us: number, until: number, slower: number): void {
    const over = us >= until
    if (this.#waiting > 0) {
      this.#waiting = over ? 0 : this.#waiting - us
    } else {
      const part = over ? this.#left : this.#left * (us / until)
      for (const batch of this.#turns.batches) {
        const more = part * this.#pace.us(batch, slower)
        for (let unit = batch.from; unit < batch.to; unit++) this.#busy[unit] = (this.#busy[unit] ?? 0) + more
      }
      this.#left -= part
      this.#elapsed += us
    }
    if (over) this.#next()
  }

  #next(): void {
    while (this.#layer < this.#layers) {
      if (this.#turns.next(this.#layer, this.#layer)) {
        this.#left = 1
        return
      }
      let longest = 0
      for (const us of this.#busy) if (us > longest) longest = us
      this.#waiting = Math.max(0, longest - this.#elapsed)
      this.#busy.fill(0)
      this.#elapsed = 0
      this.#layer++
      if (this.#waiting > 0) return
    }
    this.ended = true
  }
}

/** Microseconds of a step whose units take the next tile when they are free, of one layer after the other without a break. */
function claimedUs(lists: readonly TileList[], pace: Pace): number {
  // When each unit is free, as a heap: the first is free first.
  const free = new Float64Array(lists[0]?.units ?? 1)
  const turns = new Turns(lists, pace)
  while (turns.next(0, lists.length - 1)) {
    const slower = pace.slower(turns.asked)
    for (const batch of turns.batches) {
      const us = pace.us(batch, slower)
      for (let i = batch.from; i < batch.to; i++) sink(free, (free[0] ?? 0) + us)
    }
  }
  return free.reduce((a, b) => Math.max(a, b), 0)
}

/** Puts a value in the place of a heap's first. */
function sink(heap: Float64Array, value: number): void {
  let at = 0
  for (let child = 1; child < heap.length; child = 2 * at + 1) {
    if (child + 1 < heap.length && (heap[child + 1] ?? 0) < (heap[child] ?? 0)) child++
    const least = heap[child] ?? 0
    if (least >= value) break
    heap[at] = least
    at = child
  }
  heap[at] = value
}

/** Microseconds after which each slice has ended. */
function dealtUs(slices: StepTiles['slices'], pace: Pace): number[] {
  const ends = slices.map(() => 0)
  let running = slices.map(({ linears }, index) => ({ slice: new Dealt(linears, pace), index }))
  for (let now = 0; ; ) {
    running = running.filter(({ slice, index }) => {
      if (slice.ended) ends[index] = now
      return !slice.ended
    })
    if (running.length === 0) return ends
    let asked = 0
    for (const { slice } of running) asked += slice.asked
    const slower = pace.slower(asked)
    const until = running.map(({ slice }) => slice.until(slower))
    const first = Math.min(...until)
    for (const [i, { slice }] of running.entries()) slice.advance(first, until[i] ?? 0, slower)
    now += first
  }
}

/** @internal */
export function timeOf(step: StepTiles, model: TileSpeed): StepPrediction {
  const { slices } = step
  let sms = 0
  for (const slice of slices) sms += slice.sms
  const pace = new Pace(model, sms, step.costly)
  const [first] = slices
  const sliceUs = step.claimed && first ? [claimedUs(first.linears, pace)] : dealtUs(slices, pace)
  const inside = Math.max(...sliceUs, (step.bytes * 1e6) / model.memoryBytesPerSecond)
  const reads = (sms * (model.combineBytesPerSecond ?? 0)) / 1e6
  const combine = reads > 0 ? (step.combined / reads) * pace.slower(reads) : 0
  const besides =
    model.stepUs + (slices.length > 1 ? model.dividedUs : 0) + (model.perAssignmentUs ?? 0) * step.assignments
  return { stepUs: inside + combine + besides, sliceUs }
}
