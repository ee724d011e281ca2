// Makes the measured choices that come with @nexus/core of tune files:
//   node scripts/ship-tuning.mjs <source> <tune file>...      writes packages/core/src/tuning/shipped.ts
// <source> says where the times are from (an entry of docs/kernels/log.md, a file of results). Of each file only what is
// not the heuristic's choice is kept, with the times of those two, and orders of sums. Format it with biome afterwards.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root } from './child.mjs'

/**
 * The part of a tune file that is worth shipping.
 * @param {any} file
 * @param {string} source
 */
export function worthShipping(file, source) {
  if (file?.schema !== 'nexus-tune/1')
    throw new Error(`expected a tune file, got schema ${JSON.stringify(file?.schema)}`)
  const linears = file.linears
    .map((/** @type {any} */ linear) => {
      const rows = linear.rows
        .filter((/** @type {any} */ { variants, heuristic }) => variants[0] !== heuristic)
        .map((/** @type {any} */ { rows, variants: [chosen], heuristic, evenUs, skewedUs }) => {
          const two = (/** @type {any} */ us) => ({ [chosen]: us[chosen], [heuristic]: us[heuristic] })
          return { rows, variants: [chosen], heuristic, evenUs: two(evenUs), skewedUs: two(skewedUs) }
        })
      return { ...linear, rows }
    })
    .filter((/** @type {any} */ { rows, order }) => rows.length > 0 || order !== null)
  return { ...file, source, linears }
}

/** @param {readonly unknown[]} files */
export function sourceText(files) {
  return `/**
 * Measured choices that come with the package, each file of one class of devices and with its source. Only what was measured, and only where
 * it is not the heuristic's choice: the rest is the heuristic's. Written by scripts/ship-tuning.mjs.
 */
import type { TuneFile } from './tune-file.js'

export const shipped: readonly TuneFile[] = ${JSON.stringify(files, null, 2)}
`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [source, ...paths] = process.argv.slice(2)
  if (!source || paths.length === 0) {
    console.error('usage: node scripts/ship-tuning.mjs <source> <tune file>...')
    process.exit(2)
  }
  const files = paths.map((path) => worthShipping(JSON.parse(readFileSync(path, 'utf8')), source))
  writeFileSync(join(root, 'packages', 'core', 'src', 'tuning', 'shipped.ts'), sourceText(files))
}
