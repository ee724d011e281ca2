/**
 * A router that has learned: spherical k-means over images, each expert the direction of one cluster, so that experts take to kinds of images as trained
 * ones do. No gradient, no library, the same at every run.
 */
import { uniforms } from '../random.js'
import { type Images, pixels } from './digits.js'

const rounds = 25
/** Weights are multiples of 1 / steps: with whole pixels all logits are exact in float32. */
const steps = 1024

/** [experts, 64]: unit vectors, rounded. */
export function learnRouter({ values, count }: Images, experts: number, seed: number): Float32Array {
  if (experts > count) throw new RangeError(`experts: expected at most ${count} (one for each image), got ${experts}`)
  const rows = (of: Float64Array, n: number) =>
    Array.from({ length: n }, (_, i) => of.subarray(i * pixels, (i + 1) * pixels))
  const images = rows(new Float64Array(values), count)
  for (const image of images) normalise(image)

  // Begins with images that are drawn far from those before (k-means++).
  const random = uniforms(seed)
  const centres = new Float64Array(experts * pixels)
  const centreRows = rows(centres, experts)
  const far = new Float64Array(count).fill(2)
  for (const centre of centreRows) {
    const total = far.reduce((sum, x) => sum + x, 0)
    let left = random() * total
    let pick = 0
    while (pick < count - 1 && left > (far[pick] ?? 0)) left -= far[pick++] ?? 0
    centre.set(images[pick] ?? [])
    for (const [i, image] of images.entries()) {
      far[i] = Math.max(0, Math.min(far[i] ?? 0, 1 - dot(image, centre)))
    }
  }
  const chosen = new Int32Array(count).fill(-1)
  for (let round = 0, moved = true; round < rounds && moved; round++) {
    moved = false
    const sums = rows(new Float64Array(experts * pixels), experts)
    for (const [i, image] of images.entries()) {
      let best = 0
      let most = Number.NEGATIVE_INFINITY
      for (const [e, centre] of centreRows.entries()) {
        const near = dot(image, centre)
        if (near > most) [best, most] = [e, near]
      }
      moved ||= chosen[i] !== best
      chosen[i] = best
      const sum = sums[best]
      if (sum) for (let p = 0; p < pixels; p++) sum[p] = (sum[p] ?? 0) + (image[p] ?? 0)
    }
    for (const [e, sum] of sums.entries()) if (normalise(sum)) centreRows[e]?.set(sum)
  }
  return Float32Array.from(centres, (x) => Math.round(x * steps) / steps)
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let p = 0; p < pixels; p++) sum += (a[p] ?? 0) * (b[p] ?? 0)
  return sum
}

/** Makes it of length 1; false when it is of none. */
function normalise(v: Float64Array): boolean {
  const length = Math.sqrt(dot(v, v))
  if (length === 0) return false
  for (let p = 0; p < pixels; p++) v[p] = (v[p] ?? 0) / length
  return true
}
