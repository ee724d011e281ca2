/** The built command as a child process. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { systemInfo } from '@nexus/core'
import { afterAll, expect, test } from 'vitest'
import type { LayerBenchResult } from '../src/layer/bench.js'
import { readTrace } from '../src/recording/trace-file.js'
import type { StartUpResult } from '../src/start-up/bench.js'
import { fakePython } from './fake-peers.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-cli-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const run = (...words: string[]) =>
  spawnSync(process.execPath, [cli, ...words], { encoding: 'utf8', env: { ...process.env, NO_COLOR: '1' } })

const record = ['record', '--layer', 'digits', '--drift', 'gradual', '--device', 'cpu', '--tokens', '64']

test('help names every command, and a command’s teaches', () => {
  const { stdout } = run('--help')
  const names = [
    'layer',
    'router',
    'kernels',
    'ablation',
    'slice-cost',
    'isolation',
    'skew',
    'control',
    'calibration',
    'float32',
    'tuned',
    'start-up',
    'endurance',
    'record',
    'policies',
    'docs',
  ]
  for (const name of names) {
    expect(stdout).toMatch(new RegExp(`^ +${name} {2,}\\S`, 'm'))
  }
  for (const name of names.filter((each) => each !== 'docs')) {
    expect(run(name, '--help').stdout).toMatch(new RegExp(`\\n\\nTry: nexus-bench ${name} --`))
  }
}, 60_000)

test('a wrong option is one line, and code 2', () => {
  for (const [words, said] of [
    [['skew', '--shape', 'x'], '--shape: no such option; there are --shapes'],
    [['policies', '--seeds', '0'], "--seeds: '0' is not a positive integer"],
    [['isolation', '--p99-bound', 'x'], "--p99-bound: 'x' is not a positive number"],
    [['record', '--drift', 'gradual'], '--drift: needs --layer'],
    [['layer', '--part', '1of2'], "--part: '1of2' is not i/n"],
    [['layer', '--part', '3/2'], '--part: expected i/n with 1 ≤ i ≤ n'],
    [['layer', 'a.json'], '--merge: needed where files are given, such as a.json'],
    [['layer', '--merge', 'nowhere.json'], '--merge: nowhere.json: ENOENT'],
    [['router', '--routers', '8:9'], "--routers: '8:9' is not EXPERTS:topk"],
    [['ablation', '--cells', 'seed-small'], "--cells: 'seed-small' is not SHAPE/tokens"],
    [['slice-cost', '--cells', 'nothing/64'], "--cells: 'nothing' is neither one of"],
    [['endurance', '--shape', 'nothing'], "--shape: 'nothing' is neither one of"],
    [['start-up', '--once', 'seed-small/1,seed-small/2'], '--once: expected one cell'],
    [['float32', '--peers', 'cublas'], "--peers: 'cublas' is not torch or none"],
    [['tuned', '--seconds', '0'], "--seconds: '0' is not a positive number"],
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

test.skipIf(noAddon)(
  'layer: parts are measured, written, and merged into one file',
  () => {
    const common = ['layer', '--device', 'cpu', '--shapes', 'tiny:64:96:8:2', '--tokens', '1,16', '--peers', 'none']
    const files = ['1/2', '2/2'].map((part, i) => {
      const out = join(scratch, `part${i}.json`)
      const { status, stdout } = run(...common, '--budget-ms', '5', '--part', part, '--out', out)
      expect(status).toBe(0)
      expect(stdout).toMatch(/^shape +tokens[\s\S]*No peer has a time/)
      return out
    })
    const out = join(scratch, 'whole.json')
    const { status, stdout, stderr } = run('layer', '--merge', ...files, '--out', out, '--json')
    expect([status, stdout]).toEqual([0, readFileSync(out, 'utf8')])
    expect(stderr).toContain('cells of the anchors without a row: qwen3-30b-a3b 1 0')
    const { rows, kind } = JSON.parse(stdout) as LayerBenchResult
    expect(kind).toBe('layer')
    expect(rows.map(({ shape, tokens }) => `${shape} ${tokens}`)).toEqual(['tiny 1', 'tiny 16'])
  },
  60_000,
)

test.skipIf(noAddon)(
  'start-up: every run is a process of its own, and what cannot be run is written down',
  () => {
    const words = ['start-up', '--device', 'cpu', '--runs', '2', '--json', '--cells']
    const { status, stdout, stderr } = run(...words, 'tiny:64:96:8:2/16,tiny:64:96:8:9/1')
    expect(status).toBe(0)
    const { rows, failed } = JSON.parse(stdout) as StartUpResult
    expect(rows).toHaveLength(1)
    const [row] = rows
    expect(row?.runs).toHaveLength(2)
    for (const { layerMs, firstMs, secondMs, laterMs } of row?.runs ?? []) {
      for (const ms of [layerMs, firstMs, secondMs, laterMs]) expect(ms).toBeGreaterThan(0)
    }
    expect(row?.firstMaxMs).toBe(Math.max(...(row?.runs ?? []).map(({ firstMs }) => firstMs)))
    expect(failed).toMatchObject([{ cell: 'tiny 1', why: expect.stringContaining('topK') }])
    expect(stderr).toContain('tiny 16 tokens: the first forward ')
  },
  60_000,
)

test.skipIf(noAddon)(
  'Ctrl-C ends a peer with the benchmark, and takes the logits away',
  async () => {
    const pidFile = join(scratch, 'peer.pid')
    const bin = join(scratch, 'bin')
    mkdirSync(bin)
    fakePython(
      bin,
      'python3',
      `fs.writeFileSync('${pidFile}', process.pid + ' ' + args.logits[0]); setInterval(() => {}, 1000)`,
    )
    const words = [
      'layer',
      '--device',
      'cpu',
      '--shapes',
      'tiny:64:96:8:2',
      '--tokens',
      '1',
      '--peers',
      'any',
      '--budget-ms',
      '5',
    ]
    const child = spawn(process.execPath, [cli, ...words, '--out', join(scratch, 'cut.json')], {
      stdio: 'ignore',
      env: { ...process.env, PATH: `${bin}:${process.env.PATH}` },
    })
    const ended = new Promise((resolve) => child.once('exit', resolve))
    await expect
      .poll(() => existsSync(pidFile) && readFileSync(pidFile, 'utf8'), { timeout: 20_000 })
      .toMatch(/ .*nexus-bench-/)
    const [pid, folder = ''] = readFileSync(pidFile, 'utf8').split(' ')
    expect(existsSync(folder)).toBe(true)
    child.kill('SIGINT')
    expect(await ended).toBe(130)
    const alive = () => {
      try {
        return process.kill(Number(pid), 0)
      } catch {
        return false
      }
    }
    await expect.poll(alive, { timeout: 5000 }).toBe(false)
    expect(existsSync(folder)).toBe(false)
    // What was measured by then is there, and says what is not in it.
    const cut = JSON.parse(readFileSync(join(scratch, 'cut.json'), 'utf8')) as LayerBenchResult
    expect(cut.rows).toHaveLength(1)
    expect(cut.peersError).toBe('the peers had not run when this was written')
  },
  60_000,
)
