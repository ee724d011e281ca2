/**
 * The tile model by load: fitted to measured steps, a regime for each number of tokens, since a layer chooses its kernels by them. Which tile a
 * regime's kernels have is tried, or told; all else is least squares of logarithms, as in `calibrate.ts`.
 */
import { checkOptions } from '@nexus/native'
import type { DeviceDescription } from '../device.js'
import { COMBINE_BYTES_PER_SECOND, type hopperTile, limitedRate, wgmmaTiles } from '../hopper-tiles.js'
import type { TileModel, TileShape } from '../tile-model.js'
import { type Agreement, agreementOf, type RowAgreement } from './agreement.js'
import { type CalibrateOptions, prepare } from './calibrate.js'
import { leastSquares } from './least-squares.js'
import type { MeasuredShape, StepMeasurement, StepMeasurements } from './measurements.js'
import { nearestRegime } from './nearest-regime.js'
import { residualsOf } from './residuals.js'
import { timeOf } from './tile-clock.js'
import { type StepTiles, tilesOf } from './tiles.js'

/** What was fitted of one regime. */
export interface TileParameters
  extends Omit<TileModel, 'tile' | 'linears' | 'bytesPerValue' | 'rate' | 'perAssignmentUs' | 'combineBytesPerSecond'> {
  /** Operations a second of all SMs together, were their clock at its highest. */
  readonly rate: number
  /** So many SMs compute at the highest clock; where more are in use, power is the limit. */
  readonly fullClockSms: number
}

/** The tile model of one number of tokens. */
export interface TileRegime {
  readonly tokens: number
  /** tokens · topK. */
  readonly assignments: number
  readonly model: TileModel
  readonly parameters: TileParameters
  /** With the rows that it was fitted to. */
  readonly agreement: Agreement
  /**
   * With each row by a fit to all others of the regime, but for the tile, which is a fact about the kernels and no number to be fitted: it is that
   * of the regime. `null` for a single row.
   */
  readonly heldOut: Agreement | null
}

export interface TileCalibration {
  readonly shape: string
  /** By tokens. */
  readonly regimes: readonly TileRegime[]
  readonly agreement: Agreement
  readonly heldOut: Agreement
}

const ranges: Readonly<Record<keyof TileParameters, readonly [low: number, high: number, start: number]>> = {
  latencyUs: [0.5, 8, 1.9],
  memoryBytesPerSecond: [3e12, 4.8e12, 4.4e12],
  rate: [1e14, 10.7e14, 6.5e14],
  fullClockSms: [16, 132, 100],
  exposed: [0, 1, 0.3],
  tileUs: [0, 10, 1],
  stepUs: [0, 150, 25],
  dividedUs: [0, 80, 8],
}
const names = Object.keys(ranges) as (keyof TileParameters)[]
/** Weight of a parameter's distance from where it begins against a row's logarithm. */
const PULL = 0.1

const start = names.map((name) => (ranges[name][2] - ranges[name][0]) / (ranges[name][1] - ranges[name][0]))

function parametersOf(x: readonly number[]): TileParameters {
  const values = {} as Record<keyof TileParameters, number>
  for (const [i, name] of names.entries()) {
    const [low, high] = ranges[name]
    values[name] = low + (x[i] ?? 0) * (high - low)
  }
  return values
}

function modelOf(device: DeviceDescription, shape: MeasuredShape, tile: TileShape, p: TileParameters): TileModel {
  const { rate, fullClockSms, ...rest } = p
  const { sms } = device
  return {
    ...rest,
    tile,
    linears: [
      { columns: 2 * shape.hiddenDim, written: shape.hiddenDim, depth: shape.inputDim },
      { columns: shape.outputDim, written: shape.outputDim, depth: shape.hiddenDim },
    ],
    bytesPerValue: shape.bytesPerValue,
    combineBytesPerSecond: COMBINE_BYTES_PER_SECOND,
    rate: limitedRate(sms, rate, fullClockSms),
  }
}

const placed = ({ sms, sliceOf, counts }: StepMeasurement) => ({
  sms,
  sliceOf: sliceOf ?? new Array<number>(counts.length).fill(0),
})

/** A regime's rows, cut into tiles once for each shape of a tile. */
class Cut {
  readonly #cut = new Map<TileShape, Map<StepMeasurement, StepTiles>>()
  constructor(
    readonly device: DeviceDescription,
    readonly shape: MeasuredShape,
  ) {}

  predict(row: StepMeasurement, model: TileModel): number {
    const rows = this.#cut.get(model.tile) ?? new Map<StepMeasurement, StepTiles>()
    this.#cut.set(model.tile, rows)
    const step = rows.get(row) ?? tilesOf(model, row.counts, placed(row))
    rows.set(row, step)
    return timeOf(step, model).stepUs
  }

  fit(
    rows: readonly StepMeasurement[],
    shapes: readonly TileShape[],
  ): { model: TileModel; parameters: TileParameters } {
    const residuals = (tile: TileShape) => (x: readonly number[]) => {
      const model = modelOf(this.device, this.shape, tile, parametersOf(x))
      return residualsOf(rows, (row) => this.predict(row, model), x, start, PULL)
    }
    // A few steps of the search tell most tiles apart; the two that are left are searched for to the end.
    const tried = shapes.map((tile) => ({ tile, ...leastSquares(residuals(tile), start, 4) }))
    tried.sort((a, b) => a.loss - b.loss)
    const fine = tried.slice(0, 2).map(({ tile, x }) => ({ tile, ...leastSquares(residuals(tile), x, 30) }))
    const best = fine.reduce((a, b) => (b.loss < a.loss ? b : a))
    const parameters = parametersOf(best.x)
    return { model: modelOf(this.device, this.shape, best.tile, parameters), parameters }
  }

  agreement(rows: readonly StepMeasurement[], model: TileModel): Agreement {
    return agreementOf(
      rows.map((row) => {
        const predictedUs = this.predict(row, model)
        return { row, predictedUs, error: predictedUs / row.us - 1 }
      }),
    )
  }
}

/**
 * The tile models that say best what was measured of one shape, a regime for each number of tokens.
 * @param options.heldOut - whether each row is also predicted by a fit to the others. `@default true`
 * @param options.tile - the kernels' tile by the mean rows of an expert and rows in all, where it is known: `hopperTile`. `@default tried`
 * @throws TypeError or RangeError that names what is wrong with the measurements or the options
 */
export function calibrateTiles(
  measurements: StepMeasurements,
  options?: CalibrateOptions & { readonly heldOut?: boolean; readonly tile?: typeof hopperTile },
): TileCalibration {
  checkOptions('options', options, ['device', 'shape', 'heldOut', 'tile'])
  const { device, shape, rows } = prepare(measurements, options, 1)
  const withHeldOut = options?.heldOut ?? true
  const tokens = [...new Set(rows.map((row) => row.tokens))].sort((a, b) => a - b)
  const regimes = tokens.map((each): TileRegime => {
    const own = rows.filter((row) => row.tokens === each)
    const cut = new Cut(device, shape)
    const known = options?.tile?.((each * shape.topK) / shape.numExperts, each * shape.topK)
    const { model, parameters } = cut.fit(own, known === undefined ? wgmmaTiles : [known])
    const held = () =>
      agreementOf(
        own.flatMap((row) => {
          const others = own.filter((other) => other !== row)
          return cut.agreement([row], cut.fit(others, [model.tile]).model).rows
        }),
      )
    return {
      tokens: each,
      assignments: each * shape.topK,
      model,
      parameters,
      agreement: cut.agreement(own, model),
      heldOut: withHeldOut && own.length > 1 ? held() : null,
    }
  })
  const joined = (of: (regime: TileRegime) => readonly RowAgreement[]) => agreementOf(regimes.flatMap(of))
  return {
    shape: shape.name,
    regimes,
    agreement: joined((regime) => regime.agreement.rows),
    heldOut: joined((regime) => regime.heldOut?.rows ?? []),
  }
}

/**
 * The tile model for a step of so many assignments (tokens · topK): that of the regime nearest by ratio.
 * @throws RangeError when there are no regimes, or `assignments` is negative
 */
export function tilesFor(
  regimes: readonly Pick<TileRegime, 'assignments' | 'model'>[],
  assignments: number,
): TileModel {
  return nearestRegime(regimes, assignments).model
}
