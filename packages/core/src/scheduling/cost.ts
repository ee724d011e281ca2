/**
 * What each strategy's step would take, in microseconds: the cost model of `@nexus/slices` for the lanes that the strategy makes of the device.
 * A grouped launch has many experts in flight, so that one's arithmetic hides another's memory, over the whole device or within a slice;
 * what slices gain is that a few hot experts do not have to share SMs with many cold ones, and what they cost is the fork and join.
 */
import type { DType } from '@nexus/native'
import { linearShapes } from '@nexus/router-kernels/internal'
import {
  type CostByLoad,
  type CostModel,
  costOfLoad,
  type DeviceDescription,
  hopperTiles,
  predictStep,
  tileCost,
} from '@nexus/slices'
import type { LayerConfig } from '../options.js'
import type { StrategyName } from './options.js'

/**
 * What grouped launches are like, where the caller gives no cost model: a tenth of the shorter of memory's and arithmetic's time is not
 * hidden, and a lane on a stream of its own costs a fork and join inside a graph (H200). They shape predictions and never results.
 */
const launches = { overlap: 'slice', exposed: 0.1, perSliceUs: 1.5 } as const
/** Microseconds that each further lane of one divided launch costs: its blocks look up their lane, and nothing is forked. */
const cooperativeUs = 0.25

const valueBytes: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4 }
/** True float32 against bf16 on tensor cores, by the H200's data sheet: 67 of 990 TFLOP/s. */
const float32Rate = 67 / 990

/** Devices whose tensor-core kernels have the tiles of `hopperTiles`, for weights of more than so many bytes in the last layer. */
const hopper = /^NVIDIA G?H\d/
const fewWeightBytes = 16 * 2 ** 20

/**
 * The cost model of a layer's experts: by the kernels' tiles on Hopper, and elsewhere by what is moved and computed (weights read once, each
 * assignment's input read and output written once).
 */
export function layerCost({ experts, device: name }: LayerConfig, device: DeviceDescription): CostByLoad {
  const bytes = valueBytes[experts.dtype]
  const linears = linearShapes(experts)
  const weights = linears.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  const { numExperts, hiddenDim, outputDim } = experts
  if (
    name !== 'cpu' &&
    hopper.test(device.name) &&
    bytes === 2 &&
    2 * numExperts * hiddenDim * outputDim > fewWeightBytes
  ) {
    const written = (layer: number) => linears[layer + 1]?.columns ?? outputDim
    const tiled = linears.map(({ rows, columns }, i) => ({ columns: rows, written: written(i), depth: columns }))
    const models = hopperTiles(device, { numExperts, linears: tiled })
    return (assignments) => tileCost(models(assignments))
  }
  const factor = experts.dtype === 'f32' && name !== 'cpu' ? float32Rate : 1
  return {
    bandwidth: device.bandwidth,
    rate: device.rate.map(({ sms, perSecond }) => ({ sms, perSecond: perSecond * factor })),
    weightBytes: bytes * weights,
    assignmentBytes: bytes * (experts.inputDim + experts.outputDim),
    assignmentFlop: 2 * weights,
    overheadUs: 0,
    ...launches,
  }
}

/** A way of running the experts that can be had: lanes of SMs, and the lane of each expert. */
export interface Arrangement {
  readonly strategy: StrategyName
  /** SMs by lane; the whole device for 'fused'. */
  readonly sms: readonly number[]
  readonly laneOf: ArrayLike<number>
}

/**
 * Microseconds of a step's experts.
 * @param load assignments by expert
 */
export function predictUs(costs: CostByLoad, load: ArrayLike<number>, { strategy, sms, laneOf }: Arrangement): number {
  const cost = costOfLoad(costs, load)
  if (strategy === 'fused') {
    const all = sms.reduce((sum, n) => sum + n, 0)
    return predictStep(cost, load, { sms: [all], sliceOf: new Array<number>(load.length).fill(0) }).stepUs
  }
  // By tiles, being divided at all is what costs, and that is the same in one launch: the layers' own launches instead of one for both.
  const model: CostModel = strategy === 'cooperative' && !cost.tiles ? { ...cost, perSliceUs: cooperativeUs } : cost
  return predictStep(model, load, { sms, sliceOf: Array.from(laneOf) }).stepUs
}
