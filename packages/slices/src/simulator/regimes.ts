/**
 * A cost model by load. A layer chooses its kernels by the bucket of its tokens, and they differ in what an SM reads and computes with them by factors,
 * so one set of parameters cannot say them all: each number of tokens that was measured is a regime of its own, of eight parameters and a tile.
 * A load in between is said by the nearest one.
 */
import { checkOptions } from '@nexus/native'
import type { CostModel } from '../cost.js'
import { type DeviceDescription, interpolate } from '../device.js'
import { type Agreement, agreement, agreementOf, predictRow, type RowAgreement } from './agreement.js'
import { type CalibrateOptions, prepare } from './calibrate.js'
import { leastSquares } from './least-squares.js'
import type { MeasuredShape, StepMeasurement, StepMeasurements } from './measurements.js'
import { nearestRegime } from './nearest-regime.js'
import { residualsOf } from './residuals.js'

/** What was fitted of one regime. */
export interface RegimeParameters {
  /** Bytes a second that one SM reads with these kernels, where the memory has them. */
  readonly smBytesPerSecond: number
  /** Of the device's rate. */
  readonly rateScale: number
  readonly exposed: number
  readonly stepUs: number
  readonly perSliceUs: number
  readonly contention: number
  readonly walkUs: number
  readonly extraRows: number
  readonly rowTile: number
}

/** The cost model of one number of tokens. */
export interface Regime {
  readonly tokens: number
  /** tokens · topK. */
  readonly assignments: number
  readonly cost: CostModel
  readonly parameters: RegimeParameters
  /** With the rows that it was fitted to. */
  readonly agreement: Agreement
  /** With each row by a fit to all others of the regime, its tile chosen anew; `null` for a single row. */
  readonly heldOut: Agreement | null
}

export interface RegimeCalibration {
  readonly shape: string
  /** By tokens. */
  readonly regimes: readonly Regime[]
  /** Of all regimes. */
  readonly agreement: Agreement
  /** Of all regimes; of those with a single row nothing. */
  readonly heldOut: Agreement
}

type Fitted = Exclude<keyof RegimeParameters, 'rowTile'>
// Where the search begins is also where a parameter stays that the rows say nothing about.
const ranges: Readonly<Record<Fitted, readonly [low: number, high: number, starts: readonly [number, number]]>> = {
  smBytesPerSecond: [5e9, 200e9, [60e9, 35e9]],
  rateScale: [0.005, 1.5, [0.67, 0.5]],
  exposed: [0, 1, [0.3, 0.1]],
  stepUs: [0, 150, [30, 40]],
  perSliceUs: [0, 200, [5, 30]],
  contention: [0, 1, [0.5, 0.3]],
  walkUs: [0, 200, [30, 60]],
  extraRows: [0, 160, [16, 64]],
}
const names = Object.keys(ranges) as Fitted[]
const rowTiles = [1, 16, 160, 320] as const
/** Weight of a parameter's distance from where it begins against a row's logarithm: few rows do not chase a corner. */
const PULL = 0.1
/** Sharpness of the knee between what the SMs read and what the memory gives. */
const KNEE = 3

const unit = (start: 0 | 1) => names.map((name) => (ranges[name][2][start] - ranges[name][0]) / widthOf(name))
const widthOf = (name: Fitted) => ranges[name][1] - ranges[name][0]

function parametersOf(x: readonly number[], rowTile: number): RegimeParameters {
  const values: Record<string, number> = { rowTile }
  for (const [i, name] of names.entries()) values[name] = ranges[name][0] + (x[i] ?? 0) * widthOf(name)
  return values as unknown as RegimeParameters
}

function modelOf(device: DeviceDescription, shape: MeasuredShape, p: RegimeParameters): CostModel {
  const weights = shape.hiddenDim * (2 * shape.inputDim + shape.outputDim)
  const sizes: number[] = []
  for (let sms = Math.min(8, device.sms); sms < device.sms; sms += 8) sizes.push(sms)
  const bandwidth = [...sizes, device.sms].map((sms) => {
    const [own, memory] = [sms * p.smBytesPerSecond, interpolate(device.bandwidth, sms)]
    return { sms, perSecond: (own ** -KNEE + memory ** -KNEE) ** (-1 / KNEE) }
  })
  return {
    bandwidth,
    rate: device.rate.map(({ sms, perSecond }) => ({ sms, perSecond: perSecond * p.rateScale })),
    weightBytes: shape.bytesPerValue * weights,
    assignmentBytes: shape.bytesPerValue * (shape.inputDim + shape.outputDim),
    assignmentFlop: 2 * weights,
    overheadUs: 0,
    overlap: 'slice',
    exposed: p.exposed,
    rowTile: p.rowTile,
    extraRows: p.extraRows,
    stepUs: p.stepUs,
    perSliceUs: p.perSliceUs,
    contention: p.contention,
    walkUs: p.walkUs,
  }
}

interface Found {
  readonly cost: CostModel
  readonly parameters: RegimeParameters
}

function fit(rows: readonly StepMeasurement[], device: DeviceDescription, shape: MeasuredShape): Found {
  const neutral = unit(0)
  let best: { loss: number; parameters: RegimeParameters } | null = null
  for (const rowTile of rowTiles) {
    const residuals = (x: readonly number[]) => {
      const cost = modelOf(device, shape, parametersOf(x, rowTile))
      return residualsOf(rows, (row) => predictRow(cost, row), x, neutral, PULL)
    }
    for (const start of [0, 1] as const) {
      const { x, loss } = leastSquares(residuals, unit(start), 30)
      if (best === null || loss < best.loss) best = { loss, parameters: parametersOf(x, rowTile) }
    }
  }
  const parameters = best?.parameters ?? parametersOf(neutral, 1)
  return { cost: modelOf(device, shape, parameters), parameters }
}

/**
 * The cost models that say best what was measured of one shape, a regime for each number of tokens. Takes a second or so a regime with `heldOut`,
 * a tenth of it without.
 * @param options.heldOut - whether each row is also predicted by a fit to the others. `@default true`
 * @throws TypeError or RangeError that names what is wrong with the measurements or the options
 */
export function calibrateRegimes(
  measurements: StepMeasurements,
  options?: CalibrateOptions & { readonly heldOut?: boolean },
): RegimeCalibration {
  checkOptions('options', options, ['device', 'shape', 'heldOut'])
  const { device, shape, rows } = prepare(measurements, options, 1)
  const withHeldOut = options?.heldOut ?? true
  const tokens = [...new Set(rows.map((row) => row.tokens))].sort((a, b) => a - b)
  const regimes = tokens.map((each): Regime => {
    const own = rows.filter((row) => row.tokens === each)
    const { cost, parameters } = fit(own, device, shape)
    return {
      tokens: each,
      assignments: each * shape.topK,
      cost,
      parameters,
      agreement: agreement(own, cost),
      heldOut: withHeldOut && own.length > 1 ? leaveOneOut(own, device, shape) : null,
    }
  })
  const joined = (of: (regime: Regime) => readonly RowAgreement[]) => agreementOf(regimes.flatMap(of))
  return {
    shape: shape.name,
    regimes,
    agreement: joined((regime) => regime.agreement.rows),
    heldOut: joined((regime) => regime.heldOut?.rows ?? []),
  }
}

function leaveOneOut(rows: readonly StepMeasurement[], device: DeviceDescription, shape: MeasuredShape): Agreement {
  return agreementOf(
    rows.flatMap((row) => {
      const { cost } = fit(
        rows.filter((other) => other !== row),
        device,
        shape,
      )
      return agreement([row], cost).rows
    }),
  )
}

/**
 * The cost model for a step of so many assignments (tokens · topK): that of the regime nearest by ratio. For `cost` of `predictStep`, a SliceManager, or
 * {@link simulate}, which takes the function `(assignments) => costFor(regimes, assignments)` for loads that change.
 * @throws RangeError when there are no regimes, or `assignments` is negative
 */
export function costFor(regimes: readonly Pick<Regime, 'assignments' | 'cost'>[], assignments: number): CostModel {
  return nearestRegime(regimes, assignments).cost
}
