/**
 * The tiles of Nexus' own tensor-core kernels on compute 9.0 (Hopper), and what they cost there: by what policies decide where nothing was calibrated.
 *
 * The figures are of one fit to 440 measured steps of an H200 (2 shapes; 8 to 4096 tokens; even and skewed; one, two and three slices, of 16 to 132
 * SMs): nine numbers for all of them, within 3.8 % (root mean square) and 12.3 % of any. Of 478 steps of later kernels, with weights in panels, they
 * are within 5.3 % and 21 %; nine numbers fitted to these would be within 4.5 % and 16 %. `calibrateTiles` fits a device's own.
 */
import { checkInteger, checkNumber } from '@nexus/native'
import { type Curve, type DeviceDescription, h200, interpolate } from './device.js'
import type { TiledLinear, TileModel, TileShape } from './tile-model.js'

/** What an SM reads of rows that are in L2 or memory: 64 bytes a clock are its way there. @internal */
export const COMBINE_BYTES_PER_SECOND = 110e9
const KIB = 1024
/** Launches of one layer, which can divide experts among slices. */
const small = { rows: 64, columns: 256, bytesUnderWay: 160 * KIB } as const
const wide = { rows: 160, columns: 256, bytesUnderWay: 128 * KIB } as const
const ahead = { ahead: true } as const
/**
 * Up to so many rows an expert on average, both layers are one launch, for which another stands in where experts are divided; and so they are where
 * SMs work in pairs.
 */
const ONE_LAUNCH = 128
const few = { sms: 1, claimed: true, divided: { ...small, ...ahead } } as const
const handful: TileShape = { rows: 32, columns: 128, bytesUnderWay: 160 * KIB, ...few }
const fewer: TileShape = { rows: 32, columns: 256, bytesUnderWay: 192 * KIB, ...few }
const narrow: TileShape = { rows: 64, columns: 128, bytesUnderWay: 128 * KIB, ...few }
const some: TileShape = { ...small, ...few }
const many: TileShape = { ...wide, sms: 1, claimed: true, divided: { ...wide, ...ahead } }
const more: TileShape = { ...wide, sms: 1, ...ahead }
const pair: TileShape = { ...wide, rows: 320, sms: 2, ...ahead, claimed: true }
/** The tiles of the tensor-core kernels, narrow to wide; of the first an SM has three at a time. @internal */
export const wgmmaTiles: readonly TileShape[] = [
  { rows: 16, columns: 32, bytesUnderWay: 48 * KIB, sms: 1 / 3 },
  handful,
  narrow,
  fewer,
  some,
  many,
  more,
  pair,
]
/**
 * The tile that Nexus' own kernels have on compute 9.0 where no table says otherwise: 2-byte weights of more than 16 MiB, hidden and inner widths
 * that are multiples of 256 and 128, at least 64 tiles in the second layer (`choose_wgmma` and `launch_wgmma_mlp` in the native sources, which say
 * what others have).
 * @param rows - of an expert, on average
 * @param assignments - rows in all
 * @throws RangeError when one of them is no number of at least 0
 */
export function hopperTile(rows: number, assignments: number): TileShape {
  const mean = Math.ceil(checkNumber('rows', rows, 0))
  const all = checkNumber('assignments', assignments, 0)
  if (mean <= 2) return handful
  if (mean <= 4) return fewer
  if (mean <= 48) return all <= (mean <= 24 ? 1024 : 512) ? narrow : some
  if (mean > 160) return pair
  return mean <= ONE_LAUNCH ? many : more
}

/** Points of a curve over SMs. */
const RATES = 33

/**
 * Operations a second by SMs in use, where power is the limit from so many on: it goes with SMs · clock · voltage², and voltage with the clock, so that n
 * SMs at a limit have a clock of 1 / ∛n. @internal
 * @param rate - of all SMs, were their clock at its highest
 */
export const limitedRate = (sms: number, rate: number, fullClockSms: number): Curve =>
  Array.from({ length: RATES }, (_, i) => {
    const n = (sms * (i + 1)) / RATES
    return { sms: n, perSecond: rate * (n / sms) * Math.min(1, Math.cbrt(fullClockSms / n)) }
  })

/** Of an H200, all of it. */
const whole = { rate: 1.03e15, fullClockSms: 80, memory: 4.39e12 } as const

/** A layer's experts: {@link hopperTiles}. */
export interface TiledExperts {
  readonly numExperts: number
  readonly linears: readonly TiledLinear[]
}

/**
 * Tile models of a layer on a Hopper GPU, by the assignments of a step, uncalibrated: `cost: (assignments) => tileCost(models(assignments))`. For
 * weights of 2 bytes, of more than 16 MiB in the last layer ({@link hopperTile}).
 * @param device - whose SMs and memory count; the times are an H200's
 */
export function hopperTiles(
  device: DeviceDescription,
  { numExperts, linears }: TiledExperts,
): (assignments: number) => TileModel {
  checkInteger('numExperts', numExperts, 1)
  const part = device.sms / h200.sms
  const memory = interpolate(device.bandwidth, device.sms) / interpolate(h200.bandwidth, h200.sms)
  const models = new Map<TileShape, TileModel>()
  return (assignments) => {
    const tile = hopperTile(assignments / numExperts, assignments)
    const known = models.get(tile)
    if (known) return known
    const model: TileModel = {
      tile,
      linears,
      bytesPerValue: 2,
      latencyUs: 1.91,
      memoryBytesPerSecond: whole.memory * memory,
      rate: limitedRate(device.sms, whole.rate * part, whole.fullClockSms * part),
      exposed: 0.37,
      tileUs: 1.9,
      stepUs: 13,
      dividedUs: 11.4,
      perAssignmentUs: 3.5e-3,
      combineBytesPerSecond: COMBINE_BYTES_PER_SECOND,
    }
    models.set(tile, model)
    return model
  }
}
