/** What grouped experts are made of and how they are run: the options, and their checks. */
import {
  checkInteger,
  type DeviceName,
  type DeviceSpec,
  describe,
  LaneSet,
  type Stream,
  type Tensor,
} from '@nexus/native'
import {
  type Activation,
  checkMlpSpec,
  defaultActivation,
  type FloatDType,
  type MlpKind,
  type MlpSpec,
} from './mlp-options.js'
import { maxExperts } from './router-options.js'

/** The shape and rule of a group of expert MLPs. */
export interface ExpertsShape {
  readonly kind: MlpKind
  /** @default by kind: 'silu' for two-layer, 'relu' for three-layer, 'swiglu' for gated */
  readonly activation?: Activation
  /** Clamp of 'clamped-swiglu'. @default 7 */
  readonly limit?: number
  /** Slope of 'clamped-swiglu'. @default 1.702 */
  readonly alpha?: number
  /** 1 to 1024. */
  readonly numExperts: number
  readonly inputDim: number
  /** Inner width; of a gated MLP the width after the gate. */
  readonly hiddenDim: number
  readonly outputDim: number
  /** Of tokens, weights and output; sums are float32. 'i32' is refused. */
  readonly dtype: FloatDType
  /** @default the device of the weights, else 'auto' */
  readonly device?: DeviceSpec
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** Options of {@link GroupedExperts}. */
export interface GroupedExpertsOptions extends ExpertsShape {
  /**
   * One tensor per linear layer, [numExperts, rows, columns] as torch's Linear has it. The first one of a gated MLP is
   * [numExperts, 2·hiddenDim, inputDim] with gate i in row 2i and up i in row 2i + 1. The caller keeps them and disposes of them.
   */
  readonly weights: readonly Tensor[]
  /** One f32 tensor [numExperts, rows] or `null` per linear layer. @default no biases */
  readonly biases?: readonly (Tensor | null)[]
}

/** Options of {@link GroupedExperts.random}. */
export interface RandomExpertsOptions extends ExpertsShape {
  /** @default false */
  readonly bias?: boolean
  /** 0 to 2^32 - 1: the same seed gives the same bits on every device. @default 0 */
  readonly seed?: number
}

/** Options of {@link GroupedExperts.forward}. */
export interface ExpertsForwardOptions {
  /** f32 [tokens, topK]: scales each slot's input (Llama-4). @default null */
  readonly inputScale?: Tensor | null
  /** @default the experts' own stream */
  readonly stream?: Stream
  /** [tokens·topK, outputDim] of the experts' dtype: receives the rows, and is returned. @default a new tensor */
  readonly out?: Tensor
  /** Who runs which expert. @default all experts together */
  readonly lanes?: LaneSet
  /**
   * Runs only the experts of this lane, and leaves the rows of the others in `out` (which is needed) alone: each lane on a stream of its own,
   * forked from the stream of `out` and joined to it again. -1: all experts in one launch, whose blocks the lanes' shares divide.
   * @default -1
   */
  readonly lane?: number
}

export const shapeKeys = [
  'kind',
  'activation',
  'limit',
  'alpha',
  'numExperts',
  'inputDim',
  'hiddenDim',
  'outputDim',
  'dtype',
  'device',
  'stream',
]

/** @throws TypeError, RangeError naming the option */
export function specOf(options: ExpertsShape): MlpSpec {
  const { kind, numExperts, inputDim, hiddenDim, outputDim, dtype, limit = 7, alpha = 1.702 } = options
  checkInteger('numExperts', numExperts, 1, maxExperts)
  const activation = options.activation ?? defaultActivation[kind]
  return checkMlpSpec({ kind, activation, limit, alpha, numExperts, inputDim, hiddenDim, outputDim, dtype })
}

/**
 * The lane of a launch, -1 for all.
 * @throws TypeError, RangeError naming the option
 */
export function checkLane(
  { lanes, lane = -1, out }: ExpertsForwardOptions,
  numExperts: number,
  device: DeviceName,
): number {
  if (lanes === undefined) {
    if (lane !== -1) throw new TypeError(`lane must be given with lanes, got ${describe(lane)} without`)
    return lane
  }
  if (!(lanes instanceof LaneSet)) throw new TypeError(`lanes must be a LaneSet, got ${describe(lanes)}`)
  if (lanes.numExperts !== numExperts) {
    throw new RangeError(`lanes must be of ${numExperts} experts, got lanes of ${lanes.numExperts}`)
  }
  if (lanes.device !== device) {
    throw new RangeError(`lanes must be on device ${device}, got lanes on ${lanes.device}`)
  }
  checkInteger('lane', lane, -1, lanes.lanes - 1)
  if (lane >= 0 && out === undefined) throw new TypeError('out must be a Tensor where a lane is given, got undefined')
  return lane
}
