// `node scripts/sanitize.mjs`: how tests under compute-sanitizer are counted. The sanitizer and the test program here are
// stand-ins, since the real ones need a GPU.
import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { root } from '../scripts/child.mjs'

const script = join(root, 'scripts', 'sanitize.mjs')
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nexus-sanitize-'))
  const write = (name: string, lines: string[]) => {
    writeFileSync(join(folder, name), `#!/bin/sh\n${lines.join('\n')}\n`)
    chmodSync(join(folder, name), 0o755)
  }
  // Ends as the sanitizer does: 86 (our --error-exitcode) where it found something, else as the program.
  write('compute-sanitizer', [
    'case "$1" in --version) exit 0 ;; esac',
    `echo "$@" >> ${join(folder, 'calls')}`,
    'for last; do :; done',
    'case "$last" in bad*) echo "Invalid __global__ write"; echo "1 passed, 0 failed, 0 skipped"; exit 86 ;; esac',
    'while [ $# -gt 2 ]; do shift; done',
    '"$@"',
  ])
  write('native_test', [
    'case "$1" in',
    '--list) printf "good one\\nbad one\\nwrong one\\nslow one\\nabsent one\\nlong one\\ngone one\\n" ;;',
    '--list-in-parts) printf "long one\\n" ;;',
    'long*) if [ "$NEXUS_TEST_PART" = 2/3 ]; then echo "0 passed, 1 failed, 0 skipped"; exit 1; fi; echo "1 passed, 0 failed, 0 skipped" ;;',
    'good*) echo "1 passed, 0 failed, 0 skipped" ;;',
    'wrong*) echo "FAIL it"; echo "0 passed, 1 failed, 0 skipped"; exit 1 ;;',
    'slow*) sleep 60; echo "1 passed, 0 failed, 0 skipped" ;;',
    'gone*) kill -9 $$ ;;',
    'absent*) echo "0 passed, 0 failed, 1 skipped" ;;',
    'esac',
  ])
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const env = () => ({ ...process.env, PATH: `${folder}:${process.env.PATH}` })
function sanitize(...args: string[]) {
  const all = [script, ...args, '--program', join(folder, 'native_test')]
  const r = spawnSync(process.execPath, all, { encoding: 'utf8', env: env(), timeout: 30_000 })
  return { code: r.status, lines: r.stdout.trimEnd().split('\n'), stderr: r.stderr }
}

test('each test by itself: clean, found, failed, killed, not ended, skipped; the logs of those that are not clean', () => {
  const logs = join(folder, 'logs')
  const { code, lines } = sanitize('racecheck', '--seconds', '1', '--jobs', '2', '--logs', logs)
  expect(lines.slice(-2)).toEqual([
    'racecheck: 2 clean, 1 with findings, 1 failed by themselves, 1 killed, 1 not ended within 1 s, 1 skipped, 0 not started',
    '2 passed, 3 failed, 2 skipped',
  ])
  expect(code).toBe(1)
  expect(readdirSync(logs).sort()).toEqual([
    'racecheck-bad-one.log',
    'racecheck-gone-one.log',
    'racecheck-slow-one.log',
    'racecheck-wrong-one.log',
  ])
  expect(readFileSync(join(logs, 'racecheck-bad-one.log'), 'utf8')).toContain('Invalid __global__ write')
  expect(lines).toContainEqual(expect.stringMatching(/^ended without a closing line.*memory ran out/))
  expect(readFileSync(join(folder, 'calls'), 'utf8')).toMatch(/^--tool racecheck --error-exitcode 86 /m)
})

test('a filter; nothing found is success', () => {
  const { code, lines } = sanitize('--filter', 'good', '--filter', 'absent')
  expect(lines.at(-1)).toBe('1 passed, 0 failed, 1 skipped')
  expect(code).toBe(0)
})

test('tests of many cases in parts, each by itself; the others whole', () => {
  const { code, lines } = sanitize('--filter', 'long', '--filter', 'good', '--parts', '3', '--jobs', '1')
  const ended = lines.filter((line) => line.includes(' one')).map((line) => line.replace(/ \(.*/, ''))
  expect(ended).toEqual([
    'clean     good one',
    'clean     long one [1/3]',
    'failed    long one [2/3]',
    'clean     long one [3/3]',
  ])
  expect(lines.at(-1)).toBe('3 passed, 1 failed, 0 skipped')
  expect(code).toBe(1)
})

test('no test is started past the total limit, and that is said', () => {
  const { lines } = sanitize(
    '--jobs',
    '1',
    '--filter',
    'slow',
    '--filter',
    'absent',
    '--seconds',
    '1',
    '--total-seconds',
    '0.5',
  )
  expect(lines.at(-2)).toMatch(/0 clean, .* 1 not ended within 1 s, 0 skipped, 1 not started$/)
})

test('an interrupt ends the tests that run and prints no verdict', async () => {
  const child = spawn(process.execPath, [script, '--filter', 'slow', '--program', join(folder, 'native_test')], {
    env: env(),
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  child.stdout.on('data', (chunk) => (text += chunk))
  await vi.waitFor(() => readFileSync(join(folder, 'calls')), { timeout: 15_000 })
  child.kill('SIGINT')
  const code = await new Promise((resolve) => child.on('close', resolve))
  expect({ code, text }).toEqual({ code: 130, text: '' })
})

test('what cannot be is refused by name', () => {
  expect(sanitize('leakcheck')).toMatchObject({ code: 2, stderr: expect.stringContaining("got 'leakcheck'") })
  expect(sanitize('--parts', 'few')).toMatchObject({ code: 2, stderr: expect.stringContaining('--parts: expected') })
  expect(sanitize('--seconds', '0')).toMatchObject({ code: 2, stderr: expect.stringContaining('--seconds: expected') })
  expect(sanitize('--filter', 'nothing')).toMatchObject({ code: 2, stderr: expect.stringContaining("'nothing'") })
})
