/** The simulator's models fitted to a file of measured steps, by shape, and how far they are off. Needs no device. */
import type { DeviceDescription } from '@nexus/core'
import {
  type Agreement,
  calibrateRegimes,
  calibrateTiles,
  hopperTile,
  type RegimeParameters,
  type RowAgreement,
  type StepMeasurements,
  type TileParameters,
  type TileShape,
} from '@nexus/slices/simulator'
import { quantile } from './statistics.js'

/** How far predicted steps are from measured ones: parts of 1. */
export interface FitErrors {
  readonly meanError: number
  /** 95 % of the steps are at most this far off. */
  readonly p95Error: number
  readonly maxError: number
}

/** The row that is furthest off. */
export interface WorstRow {
  readonly sms: readonly number[]
  /** Rows of its busiest expert. */
  readonly busiest: number
  readonly error: number
}

/** One number of tokens. */
export interface RegimeFit<Parameters> {
  readonly tokens: number
  readonly rows: number
  readonly parameters: Parameters
  readonly fitted: FitErrors
  readonly heldOut: FitErrors | null
  /** The row that is furthest off when it is held out. */
  readonly worst: WorstRow | null
}

/** A kind of model. */
export interface ModelFit<Parameters> {
  /** Of the rows that were fitted. */
  readonly fitted: FitErrors
  /** Of each row by a fit to the others of its regime. */
  readonly heldOut: FitErrors
  readonly regimes: readonly RegimeFit<Parameters>[]
}

/** The models of a shape. */
export interface CalibrationFit {
  readonly shape: string
  readonly rows: number
  /** The simulator's clock: steps tile by tile. */
  readonly tiles: ModelFit<TileParameters & { readonly tile: TileShape }>
  /** The closed form by which policies decide. */
  readonly cost: ModelFit<RegimeParameters>
}

interface Fitted<Parameters> {
  readonly agreement: Agreement
  readonly heldOut: Agreement
  readonly regimes: readonly {
    readonly tokens: number
    readonly agreement: Agreement
    readonly heldOut: Agreement | null
    readonly parameters: Parameters
  }[]
}

/** Which kernels ran is known there; elsewhere their tile is tried. */
export const knownTile = ({ device }: StepMeasurements) => (/^NVIDIA G?H\d/.test(device) ? { tile: hopperTile } : {})

/** @param onProgress - told a line for each shape */
export function fitsOf(
  measurements: StepMeasurements,
  device: DeviceDescription,
  onProgress: (line: string) => void,
): CalibrationFit[] {
  const known = knownTile(measurements)
  return measurements.shapes.map(({ name }) => {
    const found = calibrateTiles(measurements, { shape: name, device, ...known })
    const regimes = found.regimes.map((each) => ({
      ...each,
      parameters: { ...each.parameters, tile: each.model.tile },
    }))
    const tiles = modelOf({ ...found, regimes })
    const cost = modelOf(calibrateRegimes(measurements, { shape: name, device }))
    const text = (e: FitErrors) => `${(e.maxError * 100).toFixed(1)} %`
    onProgress(
      `${name}: at most ${text(tiles.heldOut)} off on steps not seen (${text(tiles.fitted)} on those fitted); the cost model ${text(cost.heldOut)}`,
    )
    return { shape: name, rows: found.agreement.rows.length, tiles, cost }
  })
}

function modelOf<Parameters>({ agreement, heldOut, regimes }: Fitted<Parameters>): ModelFit<Parameters> {
  return {
    fitted: errorsOf(agreement),
    heldOut: errorsOf(heldOut),
    regimes: regimes.map((regime) => ({
      tokens: regime.tokens,
      rows: regime.agreement.rows.length,
      parameters: regime.parameters,
      fitted: errorsOf(regime.agreement),
      heldOut: regime.heldOut && errorsOf(regime.heldOut),
      worst: worstRow(regime.heldOut?.rows ?? []),
    })),
  }
}

const errorsOf = ({ rows }: Agreement): FitErrors => sizesOf(rows.map(({ error }) => error))

/** Of signed errors. */
export function sizesOf(errors: readonly number[]): FitErrors {
  const sizes = errors.map((error) => Math.abs(error))
  return {
    meanError: sizes.reduce((sum, size) => sum + size, 0) / Math.max(1, sizes.length),
    p95Error: sizes.length === 0 ? 0 : quantile(sizes, 0.95),
    maxError: Math.max(0, ...sizes),
  }
}

export function worstRow(rows: readonly Pick<RowAgreement, 'row' | 'error'>[]): WorstRow | null {
  if (rows.length === 0) return null
  const { row, error } = rows.reduce((a, b) => (Math.abs(b.error) > Math.abs(a.error) ? b : a))
  return { sms: row.sms, busiest: Math.max(...row.counts), error }
}
