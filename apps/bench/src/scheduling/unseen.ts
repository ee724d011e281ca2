/**
 * The simulator's clock held against another file of measured steps: layouts and loads that no fit has seen, and steps that were measured before,
 * which say how far a step is from itself.
 */
import type { DeviceDescription } from '@nexus/core'
import {
  calibrateTiles,
  predictTiles,
  type StepMeasurement,
  type StepMeasurements,
  tilesFor,
} from '@nexus/slices/simulator'
import { type FitErrors, knownTile, sizesOf, type WorstRow, worstRow } from './fits.js'

/** One number of tokens of a shape. */
export interface UnseenSteps {
  readonly shape: string
  readonly tokens: number
  /** Steps that the fit has not seen, and how far the clock is from them. */
  readonly rows: number
  readonly off: FitErrors | null
  readonly worst: WorstRow | null
  /** Steps that both files have, and how far the second measurement is from the first. */
  readonly again: number
  readonly moved: FitErrors | null
}

/** The same step: the same load, laid out the same way. */
export const keyOf = ({ shape, tokens, strategy, sms, sliceOf, counts }: StepMeasurement): string =>
  JSON.stringify([shape, tokens, strategy, sms, sliceOf, counts])

/**
 * The clock as it is fitted to `seen`, by shape and number of tokens, against the steps of `other`.
 * @throws RangeError when `other` has shapes that `seen` has not
 */
export function unseenOf(seen: StepMeasurements, other: StepMeasurements, device: DeviceDescription): UnseenSteps[] {
  const before = new Map(seen.rows.map((row) => [keyOf(row), row.us]))
  return other.shapes.flatMap(({ name, topK }) => {
    const { regimes } = calibrateTiles(seen, { shape: name, device, heldOut: false, ...knownTile(seen) })
    const own = other.rows.filter(({ shape }) => shape === name)
    return [...new Set(own.map(({ tokens }) => tokens))].map((tokens): UnseenSteps => {
      const model = tilesFor(regimes, tokens * topK)
      const rows = own.filter((row) => row.tokens === tokens)
      const fresh = rows.filter((row) => !before.has(keyOf(row)))
      const errors = fresh.map((row) => {
        const sliceOf = row.sliceOf ?? new Array<number>(row.counts.length).fill(0)
        return { row, error: predictTiles(model, row.counts, { sms: row.sms, sliceOf }).stepUs / row.us - 1 }
      })
      const moved = rows.flatMap((row) => {
        const us = before.get(keyOf(row))
        return us === undefined ? [] : [row.us / us - 1]
      })
      return {
        shape: name,
        tokens,
        rows: fresh.length,
        off: fresh.length === 0 ? null : sizesOf(errors.map(({ error }) => error)),
        worst: worstRow(errors),
        again: moved.length,
        moved: moved.length === 0 ? null : sizesOf(moved),
      }
    })
  })
}
