/**
 * What a cell's output is held against before it is timed: float64 on some rows, a float32 layer on all of them. Steps are checked as they are
 * timed, which is replayed where graphs are on.
 */
import type { MoELayer, Tensor } from '@nexus/core'
import { checkedTokens, layerRows, productRows, relativeError } from '../float64.js'
import { readPart } from '../native.js'
import type { Cell } from './cells.js'
import type { ShapeLayers } from './shape-layers.js'

/** A relative error of bf16 products beyond this is a wrong result. */
const tolerance = 2e-2

/** Rows of a step with the router's own product: its logits are as exact as float32 sums, and their check is of the product alone. */
const productChecks = 4

export class CellCheck {
  private constructor(
    readonly cell: Cell,
    readonly rows: readonly number[],
    readonly want: readonly Float64Array[],
  ) {}

  /** @param logits [tokens, experts] that are given to the step */
  static async of(layers: ShapeLayers, cell: Cell, x: Tensor, logits: Float32Array): Promise<CellCheck> {
    const rows = checkedTokens(cell.shape, cell.tokens)
    return new CellCheck(cell, rows, await layerRows(cell.shape, layers.weights, x, logits, rows))
  }

  /** The same for logits that the layer computes itself, to which it adds `bias`. */
  static async ofProduct(layers: ShapeLayers, cell: Cell, x: Tensor, bias: Float32Array): Promise<CellCheck> {
    const { shape, tokens } = cell
    const rows = checkedTokens(shape, tokens).slice(0, productChecks)
    const logits = new Float32Array(tokens * shape.experts)
    for (const [i, own] of (await productRows(shape, layers.weights.router, x, rows)).entries()) {
      logits.set(
        own.map((value, e) => value + (bias[e] ?? 0)),
        (rows[i] ?? 0) * shape.experts,
      )
    }
    return new CellCheck(cell, rows, await layerRows(shape, layers.weights, x, logits, rows))
  }

  /**
   * The relative error of an output on the rows.
   * @throws RangeError when it is wrong
   */
  async error(output: Tensor, what: string): Promise<number> {
    const { hidden } = this.cell.shape
    const seen = await Promise.all(this.rows.map((token) => readPart(output, token * hidden, hidden)))
    return checked(relativeError(seen, this.want), `${what}, to float64 on rows ${this.rows.join(', ')}`)
  }
}

/** All rows of an output against the float32 twin. @throws RangeError when it is wrong */
export async function errorToF32(reference: MoELayer, x: Tensor, logits: Tensor, output: Tensor): Promise<number> {
  const wide = await x.to({ dtype: 'f32' })
  const want = await reference.forward(wide, { logits })
  try {
    const error = relativeError([await output.toFloat32Array()], [await want.output.toFloat32Array()])
    return checked(error, 'the output, to float32 on all rows')
  } finally {
    wide.dispose()
    want.output.dispose()
  }
}

function checked(error: number, what: string): number {
  if (error < tolerance) return error
  throw new RangeError(`wrong by a relative error of ${error}, expected less than ${tolerance}: ${what}`)
}
