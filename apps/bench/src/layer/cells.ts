/** Which cells a run measures: those of the anchors, a choice of them, or one's own; and a part of them where a run has to be divided. */
import { parseShape, type Shape } from '../shapes.js'
import { anchors } from './anchors.js'

/** A shape at a token count and a skew: the standard deviation of a logit bias that each expert has. */
export interface Cell {
  readonly shape: Shape
  readonly tokens: number
  readonly skew: number
}

export const cellName = ({ shape, tokens, skew }: Cell): string =>
  `${shape.name} ${tokens}${skew === 0 ? '' : ` skew ${skew}`}`

export interface CellChoice {
  /** @default all of the anchors' */
  readonly shapes?: readonly Shape[]
  /** With them the cells are all combinations. @default the anchors' cells */
  readonly tokens?: readonly number[]
  /** @default the anchors', or 0 for combinations */
  readonly skew?: number
}

/**
 * @throws RangeError where no cell is left
 */
export function chooseCells({ shapes, tokens, skew }: CellChoice): Cell[] {
  const anchored = anchors().map((row) => ({ shape: parseShape(row.shape), tokens: row.tokens, skew: row.skew }))
  if (tokens !== undefined) {
    const all = shapes ?? [...new Map(anchored.map((cell) => [cell.shape.name, cell.shape])).values()]
    return all.flatMap((shape) => tokens.map((n) => ({ shape, tokens: n, skew: skew ?? 0 })))
  }
  const names = shapes?.map(({ name }) => name)
  for (const name of names ?? []) {
    if (!anchored.some((cell) => cell.shape.name === name)) {
      throw new RangeError(`--tokens: needed with a shape that the anchors do not have, such as ${name}`)
    }
  }
  const chosen = anchored.filter(
    (cell) => (names?.includes(cell.shape.name) ?? true) && (skew === undefined || cell.skew === skew),
  )
  if (chosen.length === 0) throw new RangeError(`--skew: the anchors have no cells of these shapes with skew ${skew}`)
  // Cells of one shape together: its weights are made once.
  const order = [...new Set(chosen.map((cell) => cell.shape.name))]
  return order.flatMap((name) => chosen.filter((cell) => cell.shape.name === name))
}

/**
 * Part `i` of `n` of the cells, in order and of nearly equal numbers.
 * @throws RangeError unless 1 ≤ i ≤ n
 */
export function partOf<T>(cells: readonly T[], { index, of }: { readonly index: number; readonly of: number }): T[] {
  if (!Number.isInteger(index) || !Number.isInteger(of) || index < 1 || index > of) {
    throw new RangeError(`--part: expected i/n with 1 ≤ i ≤ n, got ${index}/${of}`)
  }
  const at = (i: number) => Math.round((i * cells.length) / of)
  return cells.slice(at(index - 1), at(index))
}
