/**
 * The cost model: how long an expert's work takes on n SMs.
 *
 *     bytes(a) = weightBytes · min(1, a) + assignmentBytes · a        flop(a) = assignmentFlop · a
 *     time(a, n) = max(bytes(a) / bandwidth(n), flop(a) / rate(n)) + overheadUs · min(1, a)
 *
 * with a the assignments of the expert in a step. An expert without any is not read; of an expected count below 1, that is the
 * probability that it is (to first order), hence min(1, a). A slice does its experts one after the other: their times add up. A step
 * ends when its slowest slice has, and not before the memory, which all slices share, has given all bytes:
 *
 *     step = max(max_s Σ_{e in s} time(a_e, n_s), Σ_e bytes(a_e) / bandwidth(all))
 */
import { checkInteger, checkNumber, checkOptions } from '@nexus/native'
import { type Curve, type DeviceDescription, interpolate } from './device.js'

/** The parameters, as data; {@link gatedExpertCost} computes them of a layer's shape. */
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
}

/** The cost model of gated experts on a device: weights read once, each assignment's input read and output written once. */
export function gatedExpertCost(device: DeviceDescription, shape: GatedExpertShape): CostModel {
  checkOptions('shape', shape, ['inputDim', 'hiddenDim', 'outputDim', 'bytesPerValue', 'overheadUs'])
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
  }
}

/** Bytes that an expert with these assignments moves. */
export function expertBytes(cost: CostModel, assignments: number): number {
  return cost.weightBytes * Math.min(1, assignments) + cost.assignmentBytes * assignments
}

/** Microseconds of an expert's work on `sms` SMs. */
export function predictExpertUs(cost: CostModel, assignments: number, sms: number): number {
  if (assignments <= 0) return 0
  const memory = expertBytes(cost, assignments) / interpolate(cost.bandwidth, sms)
  const arithmetic = (cost.assignmentFlop * assignments) / interpolate(cost.rate, sms)
  return Math.max(memory, arithmetic) * 1e6 + cost.overheadUs * Math.min(1, assignments)
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
  /** By slice. */
  readonly sliceUs: readonly number[]
}

/**
 * Microseconds of a step. Without a cost model the unit is one assignment on one SM, and only ratios mean something.
 * @param load - assignments by expert
 */
export function predictStep(cost: CostModel | null, load: ArrayLike<number>, placement: Placement): StepPrediction {
  const { sms, sliceOf } = placement
  const sliceUs = new Array<number>(sms.length).fill(0)
  if (cost === null) {
    for (let e = 0; e < sliceOf.length; e++) {
      const s = sliceOf[e] ?? 0
      sliceUs[s] = (sliceUs[s] ?? 0) + (load[e] ?? 0) / (sms[s] ?? 1)
    }
    return { stepUs: largest(sliceUs), sliceUs }
  }
  const perByte = sms.map((n) => 1e6 / interpolate(cost.bandwidth, n))
  const perFlop = sms.map((n) => 1e6 / interpolate(cost.rate, n))
  let total = 0
  let bytes = 0
  for (let s = 0; s < sms.length; s++) total += sms[s] ?? 0
  for (let e = 0; e < sliceOf.length; e++) {
    const a = load[e] ?? 0
    if (a <= 0) continue
    const s = sliceOf[e] ?? 0
    const moved = expertBytes(cost, a)
    bytes += moved
    const memory = moved * (perByte[s] ?? 0)
    const arithmetic = cost.assignmentFlop * a * (perFlop[s] ?? 0)
    sliceUs[s] = (sliceUs[s] ?? 0) + Math.max(memory, arithmetic) + cost.overheadUs * Math.min(1, a)
  }
  return { stepUs: Math.max(largest(sliceUs), (bytes * 1e6) / interpolate(cost.bandwidth, total)), sliceUs }
}

function largest(values: readonly number[]): number {
  let result = 0
  for (const value of values) if (value > result) result = value
  return result
}
