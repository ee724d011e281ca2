/** The built command as a child process. */
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { systemInfo } from '@nexus/core'
import { afterAll, expect, test } from 'vitest'
import { readTrace } from '../src/recording/trace-file.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-cli-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const run = (...words: string[]) =>
  spawnSync(process.execPath, [cli, ...words], { encoding: 'utf8', env: { ...process.env, NO_COLOR: '1' } })

const record = ['record', '--layer', 'digits', '--drift', 'gradual', '--device', 'cpu', '--tokens', '64']

test('help names every command, and a command’s teaches', () => {
  const { stdout } = run('--help')
  for (const name of ['layer', 'isolation', 'skew', 'control', 'calibration', 'record', 'policies', 'docs']) {
    expect(stdout).toMatch(new RegExp(`^ +${name} {2,}\\S`, 'm'))
  }
  for (const name of ['isolation', 'skew', 'record', 'policies']) {
    expect(run(name, '--help').stdout).toMatch(new RegExp(`\\n\\nTry: nexus-bench ${name} --`))
  }
}, 60_000)

test('a wrong option is one line, and code 2', () => {
  for (const [words, said] of [
    [['skew', '--shape', 'x'], '--shape: no such option; there are --shapes'],
    [['policies', '--seeds', '0'], "--seeds: '0' is not a positive integer"],
    [['isolation', '--p99-bound', 'x'], "--p99-bound: 'x' is not a positive number"],
    [['record', '--drift', 'gradual'], '--drift: needs --layer'],
  ] as const) {
    const { status, stdout, stderr } = run(...words)
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toMatch(/^nexus-bench: .*\n$/)
    expect(stderr).toContain(said)
  }
}, 60_000)

test.skipIf(noAddon)(
  'record writes what can be read, says so on stdout and the rest on stderr',
  () => {
    const out = join(scratch, 'made')
    const { status, stdout, stderr } = run(...record, '--steps', '8', '--out', out, '--json')
    expect(status).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject([{ name: 'digits-gradual', experts: 64, steps: 8 }])
    expect(stderr).toContain('written: ')
    expect(readTrace(join(out, 'digits-gradual.json')).counts).toHaveLength(8)
  },
  60_000,
)

test.skipIf(noAddon)(
  'Ctrl-C ends it with 130, and leaves nothing half-written',
  async () => {
    const out = join(scratch, 'stopped')
    const child = spawn(process.execPath, [cli, ...record, '--steps', '1000000', '--out', out], { stdio: 'pipe' })
    const code = await new Promise((resolve, reject) => {
      child.stderr.once('data', () => child.kill('SIGINT'))
      child.once('error', reject)
      child.once('exit', (status) => resolve(status))
    })
    expect(code).toBe(130)
    expect(readdirSync(scratch)).not.toContain('stopped')
  },
  60_000,
)
