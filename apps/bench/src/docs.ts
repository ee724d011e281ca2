/**
 * docs/benchmarks.md, the simulator's tables in docs/slices.md and the README's figures, written from the result files so that no number in them was ever typed.
 * `nexus-bench docs` writes them, a test compares them with what the files say.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { AblationResult } from './ablation/bench.js'
import type { CpuResult } from './cpu/result.js'
import type { EnduranceResult } from './endurance/bench.js'
import type { Float32Result } from './float32/bench.js'
import type { LayerBenchResult } from './layer/bench.js'
import { benchmarksPage, readmePage, resultsFolder, slicesPage } from './paths.js'
import type { KernelsBenchResult } from './primitives/kernels.js'
import type { RouterBenchResult } from './primitives/router.js'
import { writeWhole } from './result-file.js'
import type { CalibrationResult } from './scheduling/calibration.js'
import type { ControlResult } from './scheduling/control.js'
import type { IsolationResult } from './scheduling/isolation.js'
import type { PoliciesResult } from './scheduling/policies-bench.js'
import type { SkewResult } from './scheduling/skew.js'
import { ablationSection } from './sections/ablation.js'
import { calibrationSection } from './sections/calibration.js'
import { controlSection } from './sections/control.js'
import { cpuSection } from './sections/cpu.js'
import { enduranceSection } from './sections/endurance.js'
import { float32Section } from './sections/float32.js'
import { isolationSection } from './sections/isolation.js'
import { kernelsSection } from './sections/kernels.js'
import { layerSection } from './sections/layer.js'
import { policiesSection, policyTables } from './sections/policies.js'
import { regionsSummary } from './sections/regions.js'
import { routerSection } from './sections/router.js'
import { skewSection } from './sections/skew.js'
import { sliceCostSection } from './sections/slice-cost.js'
import { startUpSection } from './sections/start-up.js'
import { tunedSection } from './sections/tuned.js'
import type { SliceCostResult } from './slice-cost/bench.js'
import type { StartUpResult } from './start-up/bench.js'
import type { TunedResult } from './tuned/bench.js'

const intro = `# Benchmarks

Written by \`npm run bench -- docs\` from the files in [apps/bench/results](../apps/bench/results/README.md); do not edit.

*Limit* is the physical bound: the larger of the bytes that must move (weights of the experts that were hit, input, output) at
4.3 TB/s and the arithmetic at 790 TFLOP/s, both measured on an H200. *Error* is relative to float64 on some rows (in the first files: to a
float32 layer with the same weights). A ratio above 1 against a peer means that Nexus is faster.
`

const policiesFile = 'policies.json'
const layerFile = 'h200-layer.json'

/** A result file; the first ones have no kind and are of layers. */
export type ResultFile =
  | (LayerBenchResult & { readonly kind?: 'layer' })
  | IsolationResult
  | SkewResult
  | ControlResult
  | PoliciesResult
  | CalibrationResult
  | RouterBenchResult
  | KernelsBenchResult
  | AblationResult
  | SliceCostResult
  | CpuResult
  | EnduranceResult
  | StartUpResult
  | Float32Result
  | TunedResult

/**
 * One result file as a section.
 * @throws RangeError for a kind that has no section
 */
export function section(file: string, result: ResultFile): string {
  switch (result.kind) {
    case undefined:
    case 'layer':
      return layerSection(file, result)
    case 'isolation':
      return isolationSection(file, result)
    case 'skew':
      return skewSection(file, result)
    case 'control':
      return controlSection(file, result)
    case 'policies':
      return policiesSection(file, result)
    case 'calibration':
      return calibrationSection(file, result)
    case 'router':
      return routerSection(file, result)
    case 'kernels':
      return kernelsSection(file, result)
    case 'ablation':
      return ablationSection(file, result)
    case 'slice-cost':
      return sliceCostSection(file, result)
    case 'cpu':
      return cpuSection(file, result)
    case 'endurance':
      return enduranceSection(file, result)
    case 'start-up':
      return startUpSection(file, result)
    case 'float32':
      return float32Section(file, result)
    case 'tuned':
      return tunedSection(file, result)
    default: {
      const { kind } = result as { kind: unknown }
      throw new RangeError(`${file}: expected a kind of result that has a section, got '${String(kind)}'`)
    }
  }
}

const read = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as ResultFile

/** The whole page. */
export function renderBenchmarks(folder: string): string {
  const files = readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .sort()
  return [intro, ...files.map((name) => section(name, read(join(folder, name))))].join('\n')
}

/** A page with other text between `<!-- name -->` and `<!-- /name -->`. */
function between(page: string, path: string, name: string, text: string): string {
  const markers = new RegExp(`(<!-- ${name} -->\\n)[\\s\\S]*?(<!-- /${name} -->)`)
  if (!markers.test(page)) throw new RangeError(`${path}: expected <!-- ${name} --> and <!-- /${name} -->`)
  return page.replace(markers, (_, begin, end) => `${begin}\n${text}\n\n${end}`)
}

/**
 * docs/slices.md with the tables between its markers as the policies' results have them.
 * @throws RangeError when the page has no markers, or the file is not of policies
 */
export function renderSlices(page: string, folder: string): string {
  const result = read(join(folder, policiesFile))
  if (result.kind !== 'policies')
    throw new RangeError(`${policiesFile}: expected kind 'policies', got '${result.kind}'`)
  return between(page, 'docs/slices.md', 'simulator', policyTables(result))
}

/**
 * The README with how fast a layer is between its markers.
 * @throws RangeError when it has no markers, or the file is not of layers
 */
export function renderReadme(page: string, folder: string): string {
  const result = read(join(folder, layerFile))
  if (result.kind !== 'layer') throw new RangeError(`${layerFile}: expected kind 'layer', got '${result.kind}'`)
  return between(page, 'README.md', 'speed', regionsSummary(result))
}

/** Writes the pages; returns their paths. */
export function writePages(): string[] {
  writeWhole(benchmarksPage, renderBenchmarks(resultsFolder))
  writeWhole(slicesPage, renderSlices(readFileSync(slicesPage, 'utf8'), resultsFolder))
  writeWhole(readmePage, renderReadme(readFileSync(readmePage, 'utf8'), resultsFolder))
  return [benchmarksPage, slicesPage, readmePage]
}
