/**
 * The layer in float64 on the host, for some of its tokens: what everything that is timed is held against first. Logits are given, so the choice
 * is exact; weights are read back from the device, expert by expert, so that nothing of the layer's own is trusted.
 */
import type { Tensor } from '@nexus/core'
import { readPart } from './native.js'
import type { Shape } from './shapes.js'

/** Products that a check may cost: half a second of one core, and as many weights to read back. */
const products = 2.5e8

/** Up to 16 tokens, spread over the batch, as many as half a second of the host's time allows; at least one. */
export function checkedTokens(shape: Shape, tokens: number): number[] {
  const each = 3 * shape.topK * shape.hidden * shape.inter
  const count = Math.min(tokens, 16, Math.max(1, Math.floor(products / each)))
  // The last token first: a batch's end is where tiles are cut off.
  return Array.from({ length: count }, (_, i) => tokens - 1 - Math.floor((i * tokens) / count))
}

/** The chosen experts of one token, best first, ties to the lower index, with softmax weights that are renormalised over them. */
export function choose(
  logits: ArrayLike<number>,
  topK: number,
): { readonly expert: number; readonly weight: number }[] {
  const order = Array.from({ length: logits.length }, (_, e) => e)
  order.sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0) || a - b)
  const chosen = order.slice(0, topK)
  const largest = logits[chosen[0] ?? 0] ?? 0
  const scores = chosen.map((e) => Math.exp((logits[e] ?? 0) - largest))
  const total = scores.reduce((sum, s) => sum + s, 0)
  return chosen.map((expert, j) => ({ expert, weight: (scores[j] ?? 0) / total }))
}

function dot(matrix: Float32Array, row: number, vector: ArrayLike<number>): number {
  const n = vector.length
  const at = row * n
  let a = 0
  let b = 0
  let i = 0
  for (; i + 1 < n; i += 2) {
    a += (matrix[at + i] as number) * (vector[i] as number)
    b += (matrix[at + i + 1] as number) * (vector[i + 1] as number)
  }
  if (i < n) a += (matrix[at + i] as number) * (vector[i] as number)
  return a + b
}

export interface LayerTensors {
  /** [experts, 2·inter, hidden], gate i in row 2i and up i in row 2i + 1. */
  readonly w1: Tensor
  /** [experts, hidden, inter]. */
  readonly w2: Tensor
}

/**
 * Σ over the chosen experts of weight · W2 (silu(gate·x) · (up·x)), in float64.
 * @param logits [tokens, experts] of the step
 * @returns one row of `hidden` numbers for each of `rows`
 */
export async function layerRows(
  shape: Shape,
  { w1, w2 }: LayerTensors,
  x: Tensor,
  logits: Float32Array,
  rows: readonly number[],
): Promise<Float64Array[]> {
  const { hidden, inter, experts, topK } = shape
  const outputs = rows.map(() => new Float64Array(hidden))
  const wanted = new Map<number, { at: number; weight: number }[]>()
  for (const [at, token] of rows.entries()) {
    for (const { expert, weight } of choose(logits.subarray(token * experts, (token + 1) * experts), topK)) {
      wanted.set(expert, [...(wanted.get(expert) ?? []), { at, weight }])
    }
  }
  const inputs = await Promise.all(rows.map((token) => readPart(x, token * hidden, hidden)))
  for (const [expert, uses] of wanted) {
    const first = await readPart(w1, expert * 2 * inter * hidden, 2 * inter * hidden)
    const second = await readPart(w2, expert * hidden * inter, hidden * inter)
    for (const { at, weight } of uses) {
      const [input, output] = [inputs[at], outputs[at]]
      if (!input || !output) continue
      const h = new Float64Array(inter)
      for (let i = 0; i < inter; i++) {
        const gate = dot(first, 2 * i, input)
        h[i] = (gate / (1 + Math.exp(-gate))) * dot(first, 2 * i + 1, input)
      }
      for (let o = 0; o < hidden; o++) output[o] = (output[o] ?? 0) + weight * dot(second, o, h)
    }
  }
  return outputs
}

/** A router's own product in float64, for some tokens: one row of `experts` numbers for each. */
export async function productRows(
  shape: Shape,
  router: Tensor,
  x: Tensor,
  rows: readonly number[],
): Promise<Float64Array[]> {
  const { hidden, experts } = shape
  const weight = await readPart(router, 0, experts * hidden)
  const inputs = await Promise.all(rows.map((token) => readPart(x, token * hidden, hidden)))
  return inputs.map((input) => Float64Array.from({ length: experts }, (_, e) => dot(weight, e, input)))
}

/** ‖got − want‖ / ‖want‖ over all rows. */
export function relativeError(got: readonly ArrayLike<number>[], want: readonly ArrayLike<number>[]): number {
  let difference = 0
  let norm = 0
  for (const [r, row] of want.entries()) {
    for (let i = 0; i < row.length; i++) {
      difference += ((got[r]?.[i] ?? Number.NaN) - (row[i] ?? Number.NaN)) ** 2
      norm += (row[i] ?? Number.NaN) ** 2
    }
  }
  return Math.sqrt(difference / norm)
}
