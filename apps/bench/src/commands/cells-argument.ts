/** Cells on a command line: SHAPE/tokens, by commas. */
import type { Cell } from '../layer/cells.js'
import { parseShape, type Shape } from '../shapes.js'
import { number } from './arguments.js'

/**
 * One object for a shape: cells are put together by it.
 * @throws RangeError naming `--name`
 */
export function parseCells(name: string, text: string, skew = 0): Cell[] {
  const shapes = new Map<string, Shape>()
  return text.split(',').map((each) => {
    const at = each.lastIndexOf('/')
    if (at < 0) throw new RangeError(`--${name}: '${each}' is not SHAPE/tokens`)
    const of = each.slice(0, at)
    const shape = shapes.get(of) ?? parseShape(of, name)
    shapes.set(of, shape)
    return { shape, tokens: number(name, each.slice(at + 1)), skew }
  })
}
