/** What a cell's time ÷ limit is aimed at, by region: of the anchors' cells only. */
import { anchorOf } from './anchors.js'

interface Place {
  readonly shape: string
  readonly tokens: number
  readonly skew: number
}

const small = 'seed-small'
/** The configurations of the design that Nexus began with; all other shapes are of models. */
export const original: readonly string[] = [small, 'seed-medium', 'seed-large']
/** Its experts are few and large: one token reads two of them at full speed, and no peer is far from the limit. */
const coarse: readonly string[] = ['mixtral-8x7b']

/** The largest time ÷ limit that meets the aim; `null` where there is none for the cell. */
export function aimOf(place: Place): number | null {
  const { shape, tokens, skew } = place
  if (anchorOf(place) === null) return null
  if (skew !== 0) return 1.3
  if (original.includes(shape)) return shape === small ? 2.2 : 1.25
  if (tokens === 1) return coarse.includes(shape) ? null : 1.2
  if (tokens <= 64) return 0.98
  return tokens === 512 ? 1.06 : 1.2
}

/** What the geometric mean of best peer ÷ ours has to reach. */
export const meanAim = 1.15
