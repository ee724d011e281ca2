/**
 * The cost model: how long an expert's work takes on n SMs, and a step that is laid out in slices.
 *
 *     bytes(a) = weightBytes · min(1, a) + assignmentBytes · a        flop(a) = assignmentFlop · rows(a)
 *     join(m, c) = max(m, c) + exposed · min(m, c)
 *     time(a, n) = join(bytes(a) / bandwidth(n), flop(a) / rate(n)) + overheadUs · min(1, a)
 *
 * with a the assignments of the expert in a step. An expert without any is not read; of an expected count below 1, that is the
 * probability that it is (to first order), hence min(1, a). rows(a) is a in whole tiles, and what an expert costs besides: kernels compute
 * tiles of rows, full or not. Memory and arithmetic run beside each other, but for the part that is `exposed`.
 *
 * A slice does its experts one after the other (`overlap: 'none'`: their times add up), or it is a persistent kernel in which the experts that
 * wait for memory run beside those that compute (`overlap: 'slice'`: bytes and operations of all its experts are added up first, and
 * then joined once). A step ends when its slowest slice has, and not before the memory, which all slices share, has given all bytes:
 *
 *     step = stepUs + dividedUs (of several slices) + perSliceUs · (slices - 1) + perAssignmentUs · Σ_e a_e
 *          + max(max_s slice_s, Σ_e bytes(a_e) / bandwidth(all))
 *
 * Two terms more, off unless given, are of several slices at once. Beside each other they ask for more than the memory has (bandwidth(n) is concave),
 * and with `contention` κ each reads 1 + κ · (Σ_s bandwidth(n_s) / bandwidth(all) - 1) times as long. And kernels that find their slice's tiles by
 * walking those of all slices spend `walkUs` · (experts with work) / n.
 *
 * With `tiles` a slice is timed by its kernels' tiles instead (`tile-cost.ts`).
 *
 * What a real device's kernels need of this is fitted by `calibrate` and `calibrateRegimes` of the simulator.
 */
import { checkInteger, checkNumber, checkOneOf, checkOptions, describe } from '@nexus/native'
import { type Curve, type DeviceDescription, interpolate } from './device.js'
import { join } from './roofline.js'
import { worthOf } from './tile-cost.js'
import type { TileModel } from './tile-model.js'

/** The parameters, as data; {@link gatedExpertCost} computes them of a layer's shape, `calibrate` of measurements. */
export interface CostModel {
  /** Bytes a second by SMs. */
  readonly bandwidth: Curve
  /** Floating-point operations a second by SMs. */
  readonly rate: Curve
  /** Bytes of an expert's weights. */
  readonly weightBytes: number
  /** Bytes that each assignment moves besides. */
  readonly assignmentBytes: number
  /** Floating-point operations of an assignment. */
  readonly assignmentFlop: number
  /** Microseconds that an expert with work costs besides. */
  readonly overheadUs: number
  /**
   * Whether the experts of a slice run one after the other, or beside each other.
   * @default 'none'
   */
  readonly overlap?: 'none' | 'slice'
  /**
   * The part of the shorter of memory's and arithmetic's time that is not hidden behind the longer, 0 to 1.
   * @default 0
   */
  readonly exposed?: number
  /**
   * Rows are computed in multiples of this.
   * @default 1
   */
  readonly rowTile?: number
  /**
   * Rows' worth of arithmetic that an expert with work costs besides (filling and draining a pipeline).
   * @default 0
   */
  readonly extraRows?: number
  /**
   * Microseconds of a step that do not depend on its load: launches, routing.
   * @default 0
   */
  readonly stepUs?: number
  /**
   * Microseconds that each slice after the first costs a step: fork, launch, join.
   * @default 0
   */
  readonly perSliceUs?: number
  /**
   * Microseconds that a step in several slices costs besides, however many they are.
   * @default 0
   */
  readonly dividedUs?: number
  /**
   * Microseconds that each assignment costs outside of the slices: routing and combining on the whole device.
   * @default 0
   */
  readonly perAssignmentUs?: number
  /**
   * How much several slices are in each other's way at the memory: 0 (not at all) to 1 (as if all of them read all the time).
   * @default 0
   */
  readonly contention?: number
  /**
   * With several slices: microseconds of one SM that each slice spends on an expert with work, its own or not.
   * @default 0
   */
  readonly walkUs?: number
  /**
   * The kernels' tiles, by which slices are timed instead of by bytes and operations: see {@link tileCost}, which makes such a model.
   * @default none
   */
  readonly tiles?: TileModel
}

/** One cost model for all loads, or that of a load by the assignments of a step: kernels are chosen by them, and differ. */
export type CostByLoad = CostModel | ((assignments: number) => CostModel)

/** @internal @throws TypeError that names what is neither a cost model nor a function that says one */
export function checkCost<T extends CostByLoad | null>(name: string, cost: T): T {
  if (typeof cost !== 'object' && typeof cost !== 'function') {
    throw new TypeError(`${name}: expected a CostModel, or a function that returns one, got ${describe(cost)}`)
  }
  return cost
}

/**
 * The cost model of a load.
 * @param load - assignments by expert
 * @throws TypeError when the function returns something else
 */
export function costOfLoad(cost: CostByLoad, load: ArrayLike<number>): CostModel {
  if (typeof cost !== 'function') return cost
  let assignments = 0
  for (let e = 0; e < load.length; e++) assignments += load[e] ?? 0
  const model = cost(assignments)
  if (typeof model !== 'object' || model === null) {
    throw new TypeError(`cost(${assignments}): expected a CostModel, got ${describe(model)}`)
  }
  return model
}

/** The shape of a layer's gated experts: [hiddenDim, inputDim] twice and [outputDim, hiddenDim]. */
export interface GatedExpertShape {
  readonly inputDim: number
  readonly hiddenDim: number
  /** @default inputDim */
  readonly outputDim?: number
  /**
   * Bytes of a weight or an activation.
   * @default 2
   */
  readonly bytesPerValue?: number
  /** @default 0.5 */
  readonly overheadUs?: number
  /** @default 'none' */
  readonly overlap?: 'none' | 'slice'
}

/** The cost model of gated experts on a device: weights read once, each assignment's input read and output written once. */
export function gatedExpertCost(device: DeviceDescription, shape: GatedExpertShape): CostModel {
  checkOptions('shape', shape, ['inputDim', 'hiddenDim', 'outputDim', 'bytesPerValue', 'overheadUs', 'overlap'])
  const inputDim = checkInteger('shape.inputDim', shape.inputDim, 1)
  const hiddenDim = checkInteger('shape.hiddenDim', shape.hiddenDim, 1)
  const outputDim = checkInteger('shape.outputDim', shape.outputDim ?? inputDim, 1)
  const bytes = checkNumber('shape.bytesPerValue', shape.bytesPerValue ?? 2, 0)
  const weights = hiddenDim * (2 * inputDim + outputDim)
  return {
    bandwidth: device.bandwidth,
    rate: device.rate,
    weightBytes: bytes * weights,
    assignmentBytes: bytes * (inputDim + outputDim),
    assignmentFlop: 2 * weights,
    overheadUs: checkNumber('shape.overheadUs', shape.overheadUs ?? 0.5, 0),
    overlap: checkOneOf('shape.overlap', shape.overlap ?? 'none', ['none', 'slice']),
  }
}

/** Bytes that an expert with these assignments moves. */
export function expertBytes(cost: CostModel, assignments: number): number {
  return cost.weightBytes * Math.min(1, assignments) + cost.assignmentBytes * assignments
}

/** Floating-point operations of an expert with these assignments: in whole tiles of rows. */
export function expertFlops(cost: CostModel, assignments: number): number {
  if (assignments <= 0) return 0
  const tile = cost.rowTile ?? 1
  // Below one: the tile of a single row, with the probability that there is one.
  const rows = tile === 1 ? assignments : tile * (assignments < 1 ? assignments : Math.ceil(assignments / tile))
  return cost.assignmentFlop * (rows + (cost.extraRows ?? 0) * Math.min(1, assignments))
}

/** Microseconds of an expert's work on `sms` SMs, alone. */
export function predictExpertUs(cost: CostModel, assignments: number, sms: number): number {
  if (assignments <= 0) return 0
  if (cost.tiles) return worthOf(cost.tiles, true).of(assignments, sms) / sms
  const memory = expertBytes(cost, assignments) / interpolate(cost.bandwidth, sms)
  const arithmetic = expertFlops(cost, assignments) / interpolate(cost.rate, sms)
  return join(memory, arithmetic, cost.exposed ?? 0) * 1e6 + cost.overheadUs * Math.min(1, assignments)
}

/** @internal Microseconds of a step outside of its slices. */
export function outsideUs(cost: CostModel, slices: number, assignments: number): number {
  const divided = slices > 1 ? (cost.dividedUs ?? 0) + (cost.perSliceUs ?? 0) * (slices - 1) : 0
  return (cost.stepUs ?? 0) + divided + (cost.perAssignmentUs ?? 0) * assignments
}

/** Where each expert runs, and how many SMs each slice has. */
export interface Placement {
  /** SMs of each slice. */
  readonly sms: readonly number[]
  /** Slice of each expert, as an index of `sms`. */
  readonly sliceOf: readonly number[]
}

/** Times of a step that is laid out so. */
export interface StepPrediction {
  readonly stepUs: number
  /** By slice: its experts alone, without what the step costs outside of the slices. */
  readonly sliceUs: readonly number[]
}
