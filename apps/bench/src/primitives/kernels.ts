/**
 * `bench kernels`: the phases of a step as primitives over the anchors' shapes, by kernel variant. The variant that the layer would choose is
 * marked. The others are every one that computes the linear layer in question, called by its name, and what the library's documented switches
 * bring about, each in a process of its own, since kernels are chosen once.
 */
import { spawnSync } from 'node:child_process'
import { resolveDevice } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { type Shape, shapeArgument } from '../shapes.js'
import type { LinearTime } from './linears.js'
import { type PhaseTime, PhaseWeights, timePhases } from './phases.js'

export interface KernelsBenchOptions {
  readonly device: 'cpu' | 'cuda'
  readonly shapes: readonly Shape[]
  readonly tokens: readonly number[]
  readonly budgetMs: number
  readonly seed: number
  /** The linear layers alone by every variant, and the phases under other switches, in child processes. */
  readonly alternatives: boolean
  /** The script of this command, which child processes run; without it there are none. */
  readonly script?: string | undefined
  readonly onProgress: (line: string) => void
}

/** A phase of a step by one path, in microseconds. */
export interface KernelRow {
  readonly shape: string
  readonly tokens: number
  readonly phase: PhaseTime['phase'] | 'linear1' | 'linear2'
  /** The switch that brought it about; 'default' without one. */
  readonly path: string
  readonly variant: string
  /** What the layer chooses by itself on this device. */
  readonly chosen: boolean
  readonly us: number
  readonly gigabytesPerSecond: number
  readonly teraflopsPerSecond: number
}

export interface KernelsBenchResult {
  readonly kind: 'kernels'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly rows: readonly KernelRow[]
  /** Largest relative error to float64 of the rows that were checked, by path. */
  readonly relativeErrors: Readonly<Record<string, number>>
  /** What could not be measured, and why. */
  readonly failed: readonly { readonly what: string; readonly why: string }[]
}

const whole = 'default'

/** Switches of the environment under which the library chooses other kernels. */
const switches = {
  cuda: [{ NEXUS_CUDA_ARCH: '80' }],
  cpu: [{ NEXUS_CPU_ISA: 'scalar' }, { NEXUS_CPU_ISA: 'avx2' }],
} as const

const nameOf = (env: Readonly<Record<string, string>>) =>
  Object.entries(env)
    .map(([key, value]) => `${key}=${value}`)
    .join(' ')

export async function kernelsBench(options: KernelsBenchOptions): Promise<KernelsBenchResult> {
  const { device, shapes, tokens, seed, budgetMs, alternatives, onProgress } = options
  // What is not there is one error, not one for each shape.
  resolveDevice(device)
  const rows: KernelRow[] = []
  const failed: { what: string; why: string }[] = []
  const relativeErrors: Record<string, number> = {}
  let worst = 0
  const measure = async (weights: PhaseWeights, n: number) => {
    const { shape } = weights
    const { phases, linears, relativeError } = await timePhases(weights, n, { budgetMs, linears: alternatives })
    worst = Math.max(worst, relativeError)
    rows.push(...phases.map((phase) => rowOf(shape, n, { ...phase, chosen: true })))
    rows.push(...linears.times.map((linear) => rowOf(shape, n, linear)))
    failed.push(...linears.failed.map(({ variant, why }) => ({ what: `${shape.name}, ${n} tokens, ${variant}`, why })))
    onProgress(`${shape.name} ${n} tokens: ${phases.map((p) => `${p.phase} ${p.us.toFixed(1)}`).join(', ')} us`)
  }
  const lost = (what: string, error: unknown) => {
    failed.push({ what, why: errorText(error) })
    onProgress(`${what}: ${errorText(error)}`)
  }
  for (const shape of shapes) {
    let weights: PhaseWeights | null = null
    try {
      weights = new PhaseWeights(shape, device, seed)
      for (const n of tokens) {
        await measure(weights, n).catch((error: unknown) => lost(`${shape.name}, ${n} tokens`, error))
      }
    } catch (error) {
      lost(shape.name, error)
    } finally {
      weights?.dispose()
    }
  }
  relativeErrors[whole] = worst
  if (alternatives && !rows.some(({ phase }) => phase === 'linear1')) {
    failed.push({ what: 'linear layers alone', why: 'this build of the addon names no kernel variants' })
  }
  for (const env of alternatives ? switches[device] : []) {
    const path = nameOf(env)
    onProgress(path)
    const other = runAgain(options, env)
    if (typeof other === 'string') failed.push({ what: path, why: other })
    else {
      rows.push(...other.rows.filter((row) => row.variant !== '').map((row) => ({ ...row, path, chosen: false })))
      failed.push(...other.failed.map(({ what, why }) => ({ what: `${path}: ${what}`, why })))
      relativeErrors[path] = other.relativeErrors[whole] ?? Number.NaN
    }
  }
  return {
    kind: 'kernels',
    what: 'the phases of a step as primitives, bf16, each as a node of a graph, weights rotated beyond the cache; medians',
    environment: environment(device),
    seed,
    rows,
    relativeErrors,
    failed,
  }
}

const rowOf = (
  shape: Shape,
  tokens: number,
  { phase, us, bytes, flop, variants, chosen }: (PhaseTime | LinearTime) & { readonly chosen: boolean },
): KernelRow => ({
  shape: shape.name,
  tokens,
  phase,
  path: whole,
  variant: variants.join(' + '),
  chosen,
  us,
  gigabytesPerSecond: bytes / us / 1e3,
  teraflopsPerSecond: flop / us / 1e6,
})

/** The same command under a switch, in a process of its own; a text is why it gave nothing. */
function runAgain(options: KernelsBenchOptions, env: Readonly<Record<string, string>>): KernelsBenchResult | string {
  const { device, shapes, tokens, budgetMs, seed, script } = options
  if (script === undefined) return 'the command cannot be run anew'
  const named = shapes.map((shape) => shapeArgument(shape))
  const args = ['kernels', '--device', device, '--shapes', named.join(','), '--tokens', tokens.join(',')]
  args.push('--budget-ms', String(budgetMs), '--seed', String(seed), '--only-chosen', '--json')
  const ran = spawnSync(process.execPath, [script, ...args], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 2 ** 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  if (ran.status !== 0) return ran.stderr.trim().split('\n').at(-1) || `it ended with ${ran.status ?? ran.signal}`
  return JSON.parse(ran.stdout) as KernelsBenchResult
}
