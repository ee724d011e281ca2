/**
 * Three slices as policies arrange them, on the device: by the kernels' tiles, by what is moved and computed, and by the tiles of a load that has
 * drifted since. What a decision is worth is how long its step takes, not how well a model says it.
 */
import { arrange, costOfLoad, type DeviceDescription, gatedExpertCost, type Placement } from '@nexus/core'
import type { StepMeasurement } from '@nexus/slices/simulator'
import type { Shape } from '../shapes.js'
import { type Clock, simulatedBy } from './clocks.js'

/** One load's three arrangements, in microseconds of a step. */
export interface ArrangedStep {
  readonly shape: string
  readonly tokens: number
  /** Rows of the busiest expert. */
  readonly busiest: number
  readonly byTilesUs: number
  /** Arranged for another load, half of which is this one. */
  readonly driftedUs: number
  readonly byBytesUs: number
}

/** Slices of an arrangement. */
const SLICES = 3

/** What is measured of a load, in this order; nothing without a clock of the shape. */
export function arrangements(
  clocks: readonly Clock[],
  shape: Shape,
  counts: readonly number[],
  device: DeviceDescription,
): Placement[] {
  const clock = clocks.find((each) => each.shape === shape.name)
  if (!clock) return []
  const { sms, granularity, minSms } = device
  const constraints = { sms, granularity, minSms, slices: SLICES, dwellSteps: 0, switchUs: 0 }
  const { cost } = simulatedBy(clock)
  const drifted = counts.map((count, e) => (count + (counts[(e + 7) % counts.length] ?? 0)) / 2)
  return [
    arrange(counts, constraints, costOfLoad(cost, counts)),
    arrange(drifted, constraints, costOfLoad(cost, drifted)),
    arrange(counts, constraints, gatedExpertCost(device, { inputDim: shape.hidden, hiddenDim: shape.inter })),
  ]
}

/** The arrangements among measured steps. */
export function arrangedOf(rows: readonly StepMeasurement[]): ArrangedStep[] {
  const three = rows.filter(({ sms }) => sms.length === SLICES)
  return three.flatMap(({ shape, tokens, counts, us }, i) => {
    const [drifted, byBytes] = [three[i + 1], three[i + 2]]
    if (i % 3 !== 0 || !drifted || !byBytes) return []
    const busiest = Math.max(...counts)
    return [{ shape, tokens, busiest, byTilesUs: us, driftedUs: drifted.us, byBytesUs: byBytes.us }]
  })
}
