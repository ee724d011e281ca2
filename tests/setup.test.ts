// `npm run demo` and `npm test` on a machine that lacks something: one clear line on stderr, nothing on stdout.
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { root } from '../scripts/child.mjs'
import { needs } from './tags.js'

const dev = join(root, 'scripts', 'dev.mjs')
let bin: string

beforeEach(() => {
  bin = mkdtempSync(join(tmpdir(), 'nexus-path-'))
})
afterEach(() => rmSync(bin, { recursive: true, force: true }))

// A program of the manipulated PATH: prints this, ends with this code.
function program(name: string, output = '', code = 0): void {
  writeFileSync(join(bin, name), `#!/bin/sh\necho '${output}'\nexit ${code}\n`)
  chmodSync(join(bin, name), 0o755)
}

function aMachineWith({
  cmake = 'cmake version 3.25.1',
  compiler = 0,
}: {
  cmake?: string | null
  compiler?: number | null
}) {
  symlinkSync(process.execPath, join(bin, 'node'))
  program('npx', 'installed', 99)
  program('make')
  if (cmake !== null) program('cmake', cmake)
  if (compiler !== null) program('c++', '', compiler)
}

function npmRun(task: string, env: Record<string, string> = {}) {
  const r = spawnSync(process.execPath, [dev, task], { encoding: 'utf8', env: { PATH: bin, ...env }, timeout: 30_000 })
  return { code: r.status, stdout: r.stdout, lines: r.stderr.trimEnd().split('\n') }
}

describe('a missing tool gets one line that says what to install', () => {
  const cases = [
    ['no CMake', { cmake: null }, /CMake >= 3\.22 is needed and was not found \(.*apt-get install cmake/],
    ['an old CMake', { cmake: 'cmake version 3.21.4' }, /CMake >= 3\.22 is needed, this is 3\.21\.4 \(/],
    ['no compiler', { compiler: null }, /C\+\+20 compiler is needed and was not found \(.*apt-get install g\+\+/],
    ['an old compiler', { compiler: 1 }, /C\+\+20 compiler is needed, and c\+\+ does not compile C\+\+20 \(/],
  ] as const
  for (const [name, machine, line] of cases) {
    test(name, () => {
      aMachineWith(machine)
      for (const task of ['demo', 'test']) {
        const { code, stdout, lines } = npmRun(task)
        expect({ code, stdout, count: lines.length }).toEqual({ code: 1, stdout: '', count: 1 })
        expect(lines[0]).toMatch(line)
      }
    })
  }

  test('several at once: a line for each', () => {
    aMachineWith({ cmake: null, compiler: null })
    expect(npmRun('demo').lines).toEqual([expect.stringContaining('CMake'), expect.stringContaining('C++20')])
  })

  test('CXX is what is checked where it is set', () => {
    aMachineWith({})
    const { lines } = npmRun('demo', { CXX: '/nowhere/c++' })
    expect(lines).toEqual([expect.stringContaining('CXX=/nowhere/c++ cannot be run')])
  })
})

test('a wrong NEXUS_CUDA and an unknown task are refused by name', () => {
  aMachineWith({})
  expect(npmRun('demo', { NEXUS_CUDA: 'maybe' }).lines).toEqual([
    "nexus: NEXUS_CUDA must be AUTO, ON or OFF, not 'maybe'",
  ])
  expect(npmRun('dmeo').lines[0]).toMatch(/^nexus: unknown task 'dmeo' \(.*demo/)
})

needs('compiler').test(
  'npm run --silent demo prints nothing but the result on stdout',
  () => {
    const r = spawnSync('npm', ['run', '--silent', 'demo', '--', 'doctor', '--json'], { cwd: root, encoding: 'utf8' })
    expect(r.status, r.stderr).toBe(0)
    expect(JSON.parse(r.stdout)).toBeTypeOf('object')
  },
  600_000,
)
