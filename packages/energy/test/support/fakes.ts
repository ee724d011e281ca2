/** Machines for tests: a stand-in for NVML with a control file, and a tree of RAPL counters. Both go with the test. */
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'

const built =
  process.env.NEXUS_FAKE_NVML ??
  fileURLToPath(new URL('../../../../kernels/build/test/libfake_nvml.so', import.meta.url))

/** Why tests with the stand-in are skipped; `null` where it is there. */
export const noFakeNvml: string | null = existsSync(built) ? null : `no stand-in for NVML: ${built}`

function scratch(): string {
  const folder = mkdtempSync(join(tmpdir(), 'nexus-energy-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

function setVariable(name: string, value: string): void {
  const before = process.env[name]
  process.env[name] = value
  onTestFinished(() => {
    if (before === undefined) delete process.env[name]
    else process.env[name] = before
  })
}

/** Readers see the old text or the new one. */
function replaceFile(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(`${path}.new`, text)
  renameSync(`${path}.new`, path)
}

export const gpu0 = 'GPU-00000000-0000-4000-8000-000000000000'
export const gpu1 = 'GPU-00000001-0000-4000-8000-000000000000'

export interface FakeNvml {
  readonly library: string
  /** Orders of kernels/test-support/fake_nvml.cpp. */
  say(...orders: string[]): void
}

export function fakeNvml(...orders: string[]): FakeNvml {
  const library = join(scratch(), 'libnvml.so')
  copyFileSync(built, library)
  const say = (...lines: string[]): void => replaceFile(`${library}.control`, `${lines.join('\n')}\n`)
  say(...orders)
  setVariable('NEXUS_NVML_PATH', library)
  onTestFinished(() => say()) // lets a hanging call go before the folder does
  return { library, say }
}

export interface FakeRapl {
  readonly root: string
  /** Sets a counter; microjoules. */
  set(zone: string, microjoules: number): void
  add(zone: string, name: string, microjoules: number, range?: number): void
  remove(zone: string): void
}

export function fakeRapl(): FakeRapl {
  const root = scratch()
  setVariable('NEXUS_RAPL_PATH', root)
  const set = (zone: string, microjoules: number): void =>
    replaceFile(join(root, zone, 'energy_uj'), `${Math.round(microjoules)}\n`)
  return {
    root,
    set,
    add(zone, name, microjoules, range) {
      replaceFile(join(root, zone, 'name'), `${name}\n`)
      if (range !== undefined) replaceFile(join(root, zone, 'max_energy_range_uj'), `${range}\n`)
      set(zone, microjoules)
    },
    remove: (zone) => rmSync(join(root, zone, 'energy_uj')),
  }
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Waits until `read` gives something. */
export async function until<T>(read: () => T | null | undefined | false, timeoutMs = 5000): Promise<T> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const value = read()
    if (value !== null && value !== undefined && value !== false) return value
    if (performance.now() > deadline) throw new Error('waited in vain')
    await sleep(1)
  }
}
