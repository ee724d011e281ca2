/** The cost of a slice as a constant and a part of the step. */

export interface Fit {
  /** Microseconds that every step pays. */
  readonly constantUs: number
  /** Of the step's own time on the whole device: 0.09 is 9 %. */
  readonly part: number
  /** Furthest that a step is off, as a part of its time in the slice. */
  readonly worst: number
  readonly points: number
}

interface Point {
  readonly wholeUs: number
  readonly sliceUs: number
}

/**
 * slice − whole = a + b · whole, by least squares in which each step counts by its own length: a microsecond means more to a short one.
 * @returns `null` where fewer than two lengths of step were measured
 */
export function fitCost(points: readonly Point[]): Fit | null {
  let [w, x, xx, y, xy] = [0, 0, 0, 0, 0]
  for (const { wholeUs, sliceUs } of points) {
    const weight = 1 / wholeUs ** 2
    const added = sliceUs - wholeUs
    w += weight
    x += weight * wholeUs
    xx += weight * wholeUs ** 2
    y += weight * added
    xy += weight * wholeUs * added
  }
  const determinant = w * xx - x * x
  if (!(determinant > 1e-12 * w * xx)) return null
  const part = (w * xy - x * y) / determinant
  const constantUs = (y - part * x) / w
  const off = points.map(({ wholeUs, sliceUs }) => Math.abs(constantUs + (1 + part) * wholeUs - sliceUs) / sliceUs)
  return { constantUs, part, worst: Math.max(...off), points: points.length }
}
