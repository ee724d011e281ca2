/** How rows stand: against the limit, the best of the peers, and the aims. */
import { aimOf, meanAim } from './aims.js'
import { anchors } from './anchors.js'
import type { LayerRow } from './measure.js'

export interface Standing {
  readonly row: LayerRow
  /** The fastest peer; `null` where none has a time. */
  readonly best: { readonly name: string; readonly us: number } | null
  /** best ÷ ours: above 1, ours is faster. */
  readonly gain: number | null
  readonly aim: number | null
  /** `null` without an aim. */
  readonly met: boolean | null
}

/** @param aimed - `false` on another device than those that the limits are of: there is no aim then */
export function standingOf(row: LayerRow, aimed = true): Standing {
  const [fastest] = Object.entries(row.peers).sort(([, a], [, b]) => a - b)
  const aim = aimed ? aimOf(row) : null
  return {
    row,
    best: fastest === undefined ? null : { name: fastest[0], us: fastest[1] },
    gain: fastest === undefined ? null : fastest[1] / row.nexusUs,
    aim,
    met: aim === null ? null : row.ratio <= aim,
  }
}

export const geometricMean = (values: readonly number[]): number =>
  values.length === 0 ? Number.NaN : Math.exp(values.reduce((sum, x) => sum + Math.log(x), 0) / values.length)

/** Of all rows together. */
export interface Summary {
  readonly cells: number
  /** Cells with a peer's time; the next two are of these. */
  readonly compared: number
  /** Of best peer ÷ ours; NaN where nothing was compared. */
  readonly meanGain: number
  readonly slower: readonly Standing[]
  readonly aims: number
  readonly missed: readonly Standing[]
  /** Cells of the anchors that have no row, as `shape tokens skew`. */
  readonly missing: readonly string[]
}

export function summarise(rows: readonly LayerRow[], aimed = true): Summary {
  const standings = rows.map((row) => standingOf(row, aimed))
  const gains = standings.flatMap(({ gain }) => (gain === null ? [] : [gain]))
  const has = (shape: string, tokens: number, skew: number) =>
    rows.some((row) => row.shape === shape && row.tokens === tokens && row.skew === skew)
  return {
    cells: rows.length,
    compared: gains.length,
    meanGain: geometricMean(gains),
    slower: standings.filter(({ gain }) => gain !== null && gain < 1),
    aims: standings.filter(({ aim }) => aim !== null).length,
    missed: standings.filter(({ met }) => met === false),
    missing: anchors()
      .filter(({ shape, tokens, skew }) => !has(shape, tokens, skew))
      .map(({ shape, tokens, skew }) => `${shape} ${tokens} ${skew}`),
  }
}

/** The summary in sentences. */
export function verdict(rows: readonly LayerRow[], aimed = true): string[] {
  const { cells, compared, meanGain, slower, aims, missed } = summarise(rows, aimed)
  const name = ({ row }: Standing) =>
    `${row.shape} with ${row.tokens} tokens${row.skew === 0 ? '' : ` and skew ${row.skew}`}`
  // The table marks them all; a long list in a sentence would only hide what counts.
  const list = (some: readonly Standing[], figures: (s: Standing) => string) =>
    some.length > 8 ? '' : `: ${some.map((s) => `${name(s)} (${figures(s)})`).join(', ')}`
  const said: string[] = []
  if (compared === 0) said.push('No peer has a time: nothing is compared.')
  else {
    said.push(
      `Geometric mean of best peer ÷ ours: ${meanGain.toFixed(3)} over ${compared} of ${cells} cells (aim: at least ${meanAim}).`,
      slower.length === 0
        ? 'No cell is slower than the best peer.'
        : `${slower.length} of ${compared} cells are slower than the best peer${list(slower, (s) => `${s.gain?.toFixed(2)}`)}.`,
    )
  }
  if (aims > 0) {
    said.push(
      missed.length === 0
        ? `All ${aims} aims are met.`
        : `${missed.length} of ${aims} aims are missed${list(missed, (s) => `${s.row.ratio.toFixed(2)}, aim ${s.aim}`)}.`,
    )
  }
  return said
}

/** What batch invariance costs, in a sentence; '' where it was not measured. */
export function invarianceVerdict(rows: readonly LayerRow[]): string {
  const prices = rows.flatMap((row) => {
    const { nexusInvariantUs: us, invariantVariants = [], variants } = row
    if (us === undefined) return []
    const same = invariantVariants.length === variants.length && variants.every((v, i) => v === invariantVariants[i])
    return [{ row, price: us / row.nexusUs, same }]
  })
  const [dearest] = [...prices].sort((a, b) => b.price - a.price)
  if (dearest === undefined) return ''
  const free = prices.filter(({ same, price }) => same || price <= 1.01).length
  const { row, price } = dearest
  return (
    `Batch invariance is free (the same kernels, or within 1 %) in ${free} of ${prices.length} cells; its price is at most ` +
    `${(100 * (price - 1)).toFixed(1)} % (${row.shape} with ${row.tokens} tokens), ${(100 * (geometricMean(prices.map((p) => p.price)) - 1)).toFixed(1)} % in the mean.`
  )
}
