/**
 * What a step costs in energy, predicted. Only what depends on the layout tells layouts apart: how long the device stays up for the step, and
 * how many SMs are busy for how long. Bytes and operations cost what they cost wherever they are done.
 *
 *     joules = idleWatts · step + smWatts · Σ_s n_s · busy_s + joulesPerByte · Σ_e bytes(a_e) + joulesPerFlop · Σ_e assignmentFlop · a_e
 *
 * So the soonest layout is nearly the most frugal one: what can be saved beside that are SMs that wait for memory.
 */
import { checkNumber, checkOptions, describe } from '@nexus/native'
import { type CostModel, expertBytes, outsideUs, type Placement, type StepPrediction } from './cost.js'
import { predictStep } from './predict.js'

/** The prices, as data: `powerModels` and `fitPower` of @nexus/energy make such ones. */
export interface PowerModel {
  /** Of the device with nothing to do. */
  readonly idleWatts: number
  /** Of a byte from or to device memory. */
  readonly joulesPerByte: number
  /** Of a floating-point operation. */
  readonly joulesPerFlop: number
  /**
   * Of an SM while its slice has work, beyond its bytes and operations.
   * @default 0
   */
  readonly smWatts?: number
}

/** A step's time and energy. */
export interface EnergyPrediction {
  readonly stepUs: number
  readonly joules: number
}

/** The energy of a step that is laid out so. */
export function predictEnergy(
  cost: CostModel,
  power: PowerModel,
  load: ArrayLike<number>,
  placement: Placement,
): EnergyPrediction {
  return energyOf(cost, power, load)(placement.sms, predictStep(cost, load, placement))
}

/** @internal The energy of layouts of one load: what is the same in all of them is computed once. */
export function energyOf(
  cost: CostModel,
  power: PowerModel,
  load: ArrayLike<number>,
): (sms: readonly number[], predicted: StepPrediction) => EnergyPrediction {
  let [work, assignments] = [0, 0]
  for (let e = 0; e < load.length; e++) {
    const a = load[e] ?? 0
    if (a <= 0) continue
    assignments += a
    work += expertBytes(cost, a) * power.joulesPerByte + cost.assignmentFlop * a * power.joulesPerFlop
  }
  return (sms, { stepUs, sliceUs }) => {
    let [busyUs, slowest] = [0, 0]
    for (let s = 0; s < sliceUs.length; s++) {
      busyUs += (sms[s] ?? 0) * (sliceUs[s] ?? 0)
      slowest = Math.max(slowest, sliceUs[s] ?? 0)
    }
    // Where the memory that they share is what takes longest, all slices wait for it.
    const insideUs = stepUs - outsideUs(cost, sliceUs.length, assignments)
    if (slowest > 0) busyUs *= Math.max(1, insideUs / slowest)
    return { stepUs, joules: (power.idleWatts * stepUs + (power.smWatts ?? 0) * busyUs) * 1e-6 + work }
  }
}

/** @throws TypeError or RangeError that names the field, what came and what was expected. */
export function checkPower(name: string, power: PowerModel): PowerModel {
  if (typeof power !== 'object' || power === null) {
    throw new TypeError(`${name}: expected a power model, got ${describe(power)}`)
  }
  checkOptions(name, power, ['idleWatts', 'joulesPerByte', 'joulesPerFlop', 'smWatts'])
  for (const key of ['idleWatts', 'joulesPerByte', 'joulesPerFlop'] as const) {
    checkNumber(`${name}.${key}`, power[key], 0)
  }
  if (power.smWatts !== undefined) checkNumber(`${name}.smWatts`, power.smWatts, 0)
  return power
}
