/**
 * Runs a scenario of a child program with the addon that has fault points (kernels/src/exec/fault.h): a process of its own, since a device
 * that broke stays broken and a hang does not end. The program prints what it saw as JSON; how the process ended belongs to the result.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadAddon } from '@nexus/native/binding'

const addon = loadAddon()

/** The addon with fault points, beside the one in use: they come from one build. */
export const faultyAddon = join(dirname(addon.path), 'nexus_faults.node')

/**
 * Why tests with injected faults are skipped; `null` when they run. Packages that are installed have no fault points; in a build of one's own
 * their absence is a failure.
 */
export const noFaults: string | null = addon.foundBy === 'package' ? 'an installed addon has no fault points' : null

export interface Ended {
  readonly status: number | null
  readonly signal: string | null
  /** What the scenario returned; `null` when it did not end. */
  readonly result: unknown
  readonly err: string
  readonly ms: number
}

export interface RunOptions {
  /** What the scenario is told. */
  readonly given?: unknown
  readonly env?: Readonly<Record<string, string>>
  /** The process is killed after it. @default 50000 */
  readonly timeoutMs?: number
  /** @default the one with fault points */
  readonly addon?: string
}

/** @param program beside the caller: its `import.meta.url`, then the file's name */
export function program(base: string, name: string) {
  const file = fileURLToPath(new URL(name, base))
  return (scenario: string, device: string, options: RunOptions = {}): Promise<Ended> => {
    const use = options.addon ?? faultyAddon
    if (!existsSync(use)) throw new Error(`${use} is missing: the build makes it beside the addon in use`)
    const start = performance.now()
    return new Promise((resolve, reject) => {
      // Without V8's compiler threads: in a worker that is being terminated they fail an assertion of Node 20, rarely.
      // And with room for so much that nothing is collected meanwhile: what is forgotten must be seen.
      const flags = ['--no-concurrent-recompilation', '--min-semi-space-size=256', '--max-semi-space-size=256']
      const child = spawn(process.execPath, [...flags, file, scenario, device, JSON.stringify(options.given ?? {})], {
        env: { ...process.env, NEXUS_FAULT: '', ...options.env, NEXUS_NATIVE_PATH: use },
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      let [out, err] = ['', '']
      child.stdout.on('data', (text) => (out += text))
      child.stderr.on('data', (text) => (err += text))
      const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? 50_000)
      child.on('error', reject)
      child.on('close', (status, signal) => {
        clearTimeout(timer)
        const result: unknown = out.trim() === '' ? null : JSON.parse(out)
        resolve({ status, signal, result, err: err.trim(), ms: performance.now() - start })
      })
    })
  }
}

/** A process that ended by itself, quietly, and what its scenario returned. */
export const ended = (result: unknown) => ({ status: 0, signal: null, err: '', result })
