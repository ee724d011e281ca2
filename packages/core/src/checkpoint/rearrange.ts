/** The element moves of loading, on raw bits: rows of gate and up interleaved, tiles transposed. */

/** Elements of a stored dtype: raw bits for bf16 and f16. */
export type Bits = Float32Array | Uint16Array

/** The side of a transposition's tile: 32 × 32 elements of source and result fit the first cache together. */
const tile = 32

/** Row i of `gate` becomes row 2i of `target`, row i of `up` row 2i + 1. */
export function interleaveRows(gate: Bits, up: Bits, columns: number, target: Bits): void {
  for (let from = 0, to = 0; from < gate.length; from += columns, to += 2 * columns) {
    target.set(gate.subarray(from, from + columns), to)
    target.set(up.subarray(from, from + columns), to + columns)
  }
}

/** A tile of a matrix in `bits`, row after row. */
export interface Tile {
  readonly bits: Bits
  readonly rows: number
  readonly columns: number
}

/** Column c of the source becomes row `firstRow + c * rowStep` of `target`, from element `firstColumn` of that row on. */
export function transposeTile(
  source: Tile,
  target: Bits,
  place: { readonly firstRow: number; readonly rowStep: number; readonly firstColumn: number; readonly width: number },
): void {
  const { bits, rows, columns } = source
  const stride = place.rowStep * place.width
  const origin = place.firstRow * place.width + place.firstColumn
  for (let r0 = 0; r0 < rows; r0 += tile) {
    const r1 = Math.min(r0 + tile, rows)
    for (let c0 = 0; c0 < columns; c0 += tile) {
      const c1 = Math.min(c0 + tile, columns)
      for (let c = c0; c < c1; c++) {
        const to = origin + c * stride
        for (let r = r0; r < r1; r++) target[to + r] = bits[r * columns + c] ?? 0
      }
    }
  }
}
