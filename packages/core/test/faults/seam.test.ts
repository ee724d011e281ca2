// The seam through which tests break things exists in test builds alone: nothing of it is in the addon that people get, and what carries test
// builds to other machines carries both addons.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { loadAddon } from '@nexus/native/binding'
import { describe, expect, test } from 'vitest'
import { ended, faultyAddon, noFaults, program } from './run.js'

const root = new URL('../../../../', import.meta.url)
const text = (path: string) => readFileSync(fileURLToPath(new URL(path, root)), 'utf8')
const run = program(import.meta.url, 'layer.mjs')

/** Everything that a fault point would leave in a binary: its variable, its message, and the names in the sources. */
function traces(): string[] {
  const names = [
    'cpu_graph.cpp',
    'cpu_partition.cpp',
    'cpu_stream.cpp',
    'layer_step.cpp',
    'lane_set.cpp',
    'partition.cpp',
    'step.cpp',
    'stream.cpp',
  ].flatMap((file) => {
    const points = text(`kernels/src/exec/${file}`).matchAll(/fault_point\("([\w.]+)"/g)
    return [...points].map(([, name]) => name ?? '')
  })
  expect(names.length).toBeGreaterThan(10)
  // One that is also a part of a longer name would be found in any build.
  return ['NEXUS_FAULT', 'injected fault', ...new Set(names)]
}

describe.skipIf(noFaults)(`the seam${noFaults === null ? '' : ` (${noFaults})`}`, () => {
  test('an addon without fault points has no trace of them', () => {
    const [plain, faulty] = [loadAddon().path, faultyAddon].map((path) => readFileSync(path))
    for (const trace of traces()) {
      expect(plain?.includes(trace), `${trace} in the addon`).toBe(false)
      expect(faulty?.includes(trace), `${trace} in the one with fault points`).toBe(true)
    }
  })

  test('it hears no NEXUS_FAULT', async () => {
    const given = { strategy: 'plain', fault: 'layer.step:1:oom' }
    const plain = await run('passing', 'cpu', { given, addon: loadAddon().path })
    expect(plain).toMatchObject(ended({ errors: [], wrong: 0 }))
  })

  test('a wrong NEXUS_FAULT is named, whatever was asked for', async () => {
    const { status, err } = await run('passing', 'cpu', {
      given: { strategy: 'plain', fault: 'none' },
      env: { NEXUS_FAULT: 'layer.step:1:fire' },
    })
    expect(status).toBe(1)
    expect(err).toMatch(/NEXUS_FAULT: expected .*, got 'layer\.step:1:fire'/)
  })

  test('the bundle carries it, packages do not', () => {
    expect(text('scripts/bundle.sh')).toMatch(/install .*\{nexus,nexus_faults\}\.node/)
    const { files } = JSON.parse(text('kernels/package.json')) as { files: string[] }
    expect(files.filter((path) => path.startsWith('build'))).toEqual([])
    expect(text('kernels/scripts/stage.js')).not.toMatch(/nexus_faults/)
    expect(text('kernels/bin/nexus-native.js')).toMatch(/-DNEXUS_TESTS=OFF/)
  })
})
