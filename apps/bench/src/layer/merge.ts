/** Joins the results of parts of the cells into one: a run may be too long for one call on a machine that is lent. */
import { withAnchors } from './anchors.js'
import type { LayerBenchResult } from './bench.js'

interface Part {
  readonly file: string
  readonly result: LayerBenchResult
}

/** What must be the same in all parts, for their rows to stand in one table. */
const places = ['device', 'driver', 'cudaRuntime'] as const

function check({ file, result }: Part): Part {
  if (
    typeof result !== 'object' ||
    result === null ||
    (result.kind ?? 'layer') !== 'layer' ||
    !Array.isArray(result.rows)
  ) {
    throw new TypeError(`${file}: expected a result of 'layer'`)
  }
  return { file, result }
}

/**
 * The rows of all parts, with the anchors' scaled times where they have none yet.
 * @throws TypeError for a file of another kind; RangeError where two parts were not measured alike, or have the same cell
 */
export function mergeLayerResults(parts: readonly Part[]): LayerBenchResult {
  const [first, ...others] = parts.map(check)
  if (!first) throw new RangeError('--merge: expected result files, got none')
  for (const { file, result } of others) {
    for (const key of places) {
      const [want, have] = [first.result.environment[key], result.environment[key]]
      if (want !== have) throw new RangeError(`${file}: ${key} is ${have}, that of ${first.file} ${want}`)
    }
    for (const key of ['seed', 'what'] as const) {
      if (first.result[key] !== result[key]) throw new RangeError(`${file}: ${key} is not that of ${first.file}`)
    }
  }
  const from = new Map<string, string>()
  for (const { file, result } of [first, ...others]) {
    for (const { shape, tokens, skew } of result.rows) {
      const cell = `${shape} ${tokens} skew ${skew}`
      const other = from.get(cell)
      if (other !== undefined) throw new RangeError(`${file}: has the cell ${cell}, and so has ${other}`)
      from.set(cell, file)
    }
  }
  const all = [first, ...others].map(({ result }) => result)
  const errors = all.flatMap(({ peersError }) => (peersError === null ? [] : [peersError]))
  return {
    ...first.result,
    peersError: errors.length === 0 ? null : [...new Set(errors)].join('; '),
    rows: all.flatMap(({ rows }) => rows.map(withAnchors)),
    failed: all.flatMap(({ failed = [] }) => failed),
    mergedFrom: all.flatMap(({ environment, mergedFrom }) => mergedFrom ?? [environment.date]),
  }
}
