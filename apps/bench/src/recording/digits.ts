/**
 * The data of recorded traces: handwritten digits, which the demo ships. Pixels become whole numbers around their mean over the images that routers
 * may learn from, so that a router of few bits gives exactly the same logits on every machine, whatever the order of its sums.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from '../paths.js'

export const pixels = 64
export const classes = 10
/** Pixels are divided by it on their way into a layer: about unit scale, and a power of two, so that they stay exact. */
export const pixelScale = 4

const file = join(root, 'apps/demo/assets/digits.csv')

export interface Images {
  /** [images, 64], whole numbers from -16 to 16. */
  readonly values: Int8Array
  /** Indices of the images of each class. */
  readonly byClass: readonly (readonly number[])[]
  readonly count: number
}

export interface Digits {
  /** The first half: what a router may learn from. */
  readonly learn: Images
  /** The second half: what is routed. */
  readonly route: Images
}

function images(rows: readonly (readonly number[])[], means: readonly number[]): Images {
  const values = new Int8Array(rows.length * pixels)
  const byClass = Array.from({ length: classes }, (): number[] => [])
  for (const [i, row] of rows.entries()) {
    for (let p = 0; p < pixels; p++) values[i * pixels + p] = (row[p] ?? 0) - (means[p] ?? 0)
    byClass[row[pixels] ?? 0]?.push(i)
  }
  return { values, byClass, count: rows.length }
}

/** @throws RangeError when a line is not an image */
export function readDigits(): Digits {
  const rows = readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'))
    .map((line, i) => {
      const row = line.split(',').map(Number)
      if (row.length !== pixels + 1 || row.some((v) => !Number.isInteger(v) || v < 0 || v > 16)) {
        throw new RangeError(`digits.csv: expected 64 pixels from 0 to 16 and a label in image ${i + 1}, got '${line}'`)
      }
      return row
    })
  const half = rows.length >> 1
  const first = rows.slice(0, half)
  const means = Array.from({ length: pixels }, (_, p) =>
    Math.round(first.reduce((sum, row) => sum + (row[p] ?? 0), 0) / half),
  )
  return { learn: images(first, means), route: images(rows.slice(half), means) }
}

/** Where a pixel of an image that was turned by a quarter comes from. */
export const turned: Int32Array = Int32Array.from({ length: pixels }, (_, p) => (7 - (p % 8)) * 8 + (p >> 3))
