/** The simulator's models fitted to a file of measured steps, by shape, and how far they are off. Needs no device. */
import type { DeviceDescription } from '@nexus/core'
import {
  type Agreement,
  calibrateRegimes,
  calibrateTiles,
  hopperTile,
  type RegimeParameters,
  type StepMeasurement,
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

/** One number of tokens. */
export interface RegimeFit<Parameters> {
  readonly tokens: number
  readonly rows: number
  readonly parameters: Parameters
  readonly fitted: FitErrors
  readonly heldOut: FitErrors | null
  /** The row that is furthest off when it is held out. */
  readonly worst: { readonly sms: readonly number[]; readonly busiest: number; readonly error: number } | null
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

/** @param onProgress - told a line for each shape */
export function fitsOf(
  measurements: StepMeasurements,
  device: DeviceDescription,
  onProgress: (line: string) => void,
): CalibrationFit[] {
  // Which kernels ran is known there; elsewhere their tile is tried.
  const known = /^NVIDIA G?H\d/.test(measurements.device) ? { tile: hopperTile } : {}
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
      worst: worstOf(regime.heldOut),
    })),
  }
}

function errorsOf({ rows, meanError, maxError }: Agreement): FitErrors {
  const sizes = rows.map(({ error }) => Math.abs(error))
  return { meanError, p95Error: sizes.length === 0 ? 0 : quantile(sizes, 0.95), maxError }
}

function worstOf(agreement: Agreement | null) {
  if (agreement === null || agreement.rows.length === 0) return null
  const off = (each: { readonly error: number }) => Math.abs(each.error)
  const { row, error } = agreement.rows.reduce((a, b) => (off(b) > off(a) ? b : a))
  return { sms: row.sms, busiest: busiestOf(row), error }
}

const busiestOf = ({ counts }: StepMeasurement): number => Math.max(...counts)
