/** Where things of the repository are. This file's folder is as deep as the bundle's, so that both find the root. */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../../../', import.meta.url))
export const resultsFolder = join(root, 'apps/bench/results')
export const calibrationFile = join(resultsFolder, 'h200-calibration.json')
export const tracesFolder = join(resultsFolder, 'traces')
export const benchmarksPage = join(root, 'docs/benchmarks.md')
export const readmePage = join(root, 'README.md')
export const slicesPage = join(root, 'docs/slices.md')
export const anchorsFile = join(root, 'apps/bench/peers/anchors-h200.json')
export const peersFolder = join(root, 'apps/bench/peers')
