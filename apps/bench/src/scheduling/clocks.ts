/**
 * The clocks by which policies are simulated: tile models fitted to steps that were measured (`bench calibration`), so that what a policy
 * gains is gained on that device's kernels. Policies decide by the same models, without turns (`tileCost`).
 */
import { tileCost } from '@nexus/slices'
import {
  calibrateTiles,
  type SimulateOptions,
  type StepMeasurements,
  type TileRegime,
  tilesFor,
} from '@nexus/slices/simulator'
import { type CalibrationFit, knownTile } from './fits.js'

/** One shape's, as data. */
export interface Clock {
  readonly shape: string
  readonly device: string
  /** How far it is off at most from steps that the fit did not see, a part of 1; `null` where the file does not say. */
  readonly maxError: number | null
  readonly regimes: readonly Pick<TileRegime, 'tokens' | 'assignments' | 'model'>[]
}

/** Of the shapes, all of which were measured. */
export function clocksOf(
  { measurements, fits }: { readonly measurements: StepMeasurements; readonly fits: readonly CalibrationFit[] },
  shapes: readonly string[],
): Clock[] {
  return shapes.map((shape) => clockOf(measurements, fits, shape))
}

function clockOf(measurements: StepMeasurements, fits: readonly CalibrationFit[], shape: string): Clock {
  const { regimes } = calibrateTiles(measurements, { shape, heldOut: false, ...knownTile(measurements) })
  return {
    shape,
    device: measurements.device,
    maxError: fits.find((fit) => fit.shape === shape)?.tiles.heldOut.maxError ?? null,
    regimes: regimes.map(({ tokens, assignments, model }) => ({ tokens, assignments, model })),
  }
}

/** How a clock is given to `simulate`. */
export function simulatedBy({ regimes }: Clock) {
  const clock = (assignments: number) => tilesFor(regimes, assignments)
  const cost = (assignments: number) => tileCost(clock(assignments))
  return { clock, cost } satisfies SimulateOptions
}
