/** `nexus-demo tune` as a child process: what it prints and keeps, and that a stop leaves what was kept. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { parseCommand } from '../src/arguments.js'
import { UsageError } from '../src/exit.js'
import type { TuneDocument } from '../src/tune.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const model = fileURLToPath(new URL('../assets/qwen3_moe', import.meta.url))
const small = ['--shape', '64:48:4:2', '--tokens', '1,16', '--seconds', '5', '--device', 'cpu']

let folder: string
let file: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nexus-demo-tune-'))
  file = join(folder, 'tune.json')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const environment = (): NodeJS.ProcessEnv => ({ ...process.env, NEXUS_TUNE_FILE: file, NO_COLOR: '1' })
const run = (...words: readonly string[]) =>
  spawnSync(process.execPath, [cli, 'tune', ...words], { encoding: 'utf8', env: environment() })

describe('the command line', () => {
  const defaults = {
    device: 'auto',
    dtype: null,
    tokens: null,
    seconds: 45,
    file: null,
    dryRun: false,
    seed: 0,
    json: false,
  }
  test.each([
    [['--model', 'm'], { ...defaults, of: 'm' }],
    [
      ['--shape=512:1024:8:2', '--tokens', '1, 8', '--dtype', 'bf16', '--dry-run'],
      {
        ...defaults,
        of: { inputDim: 512, hiddenDim: 1024, numExperts: 8, topK: 2 },
        tokens: [1, 8],
        dtype: 'bf16',
        dryRun: true,
      },
    ],
    [
      ['--model', 'm', '--seconds', '9', '--file', 'f', '--seed', '3', '--json', '--device', 'cuda:1'],
      { ...defaults, of: 'm', seconds: 9, file: 'f', seed: 3, json: true, device: 'cuda:1' },
    ],
  ])('%j', (words, options) => {
    expect(parseCommand(['tune', ...words])).toEqual({ name: 'tune', options })
  })

  test.each([
    [[], 'tune: expected one of --model and --shape, got neither'],
    [['--model', 'm', '--shape', '1:1:1:1'], 'tune: expected one of --model and --shape, got both'],
    [
      ['--shape', '512:1024:8'],
      "--shape: expected hidden:inter:experts:topk, such as 2048:768:128:8, got '512:1024:8'",
    ],
    [['--shape', '512:0:8:2'], "--shape: expected hidden:inter:experts:topk, such as 2048:768:128:8, got '512:0:8:2'"],
    [['--model', 'm', '--dtype', 'f64'], "--dtype: expected f32, bf16 or f16, got 'f64'"],
    [['--model', 'm', '--tokens', '1,'], "--tokens: expected an integer from 1 to 131072, got ''"],
    [['--model', 'm', '--seconds', '0'], "--seconds: expected an integer from 1 to 86400, got '0'"],
    [['--modell', 'm'], "unknown option '--modell'; did you mean '--model'?"],
    [['now'], "unexpected argument 'now'"],
  ])('%j is refused', (words, message) => {
    expect(() => parseCommand(['tune', ...words])).toThrow(UsageError)
    expect(() => parseCommand(['tune', ...words])).toThrow(message)
  })

  test('help', () => {
    const { stdout, status } = run('--help')
    for (const part of ['Usage', '--model', '--shape', '--dry-run', 'NEXUS_TUNE_FILE', 'Exit codes'])
      expect(stdout).toContain(part)
    expect(status).toBe(0)
    expect(spawnSync(process.execPath, [cli, '--help'], { encoding: 'utf8' }).stdout).toContain('nexus-demo tune')
  })
})

describe('a run', () => {
  test('prints a table, keeps the choices, and says who uses them', () => {
    const { stdout, stderr, status } = run(...small)
    expect(status).toBe(0)
    expect(stderr).toContain('nexus-demo: experts 1, 1 tokens (1 of 6)\n')
    expect(stdout.match(/^experts [12] +(1|16) +cpu-\S+ +[\d.]+ +[\d.]+/gm)).toHaveLength(4)
    expect(stderr).toContain('nexus-demo: experts step, 16 tokens (6 of 6)\n')
    expect(stdout.match(/^experts +(1|16) +cpu-\S+ \+ cpu-\S+ +[\d.]+ +[\d.]+.* [1-8] .*\d+\.\d %$/gm)).toHaveLength(2)
    expect(stdout).toContain(`Kept in ${file}.\nLayers made from now on use it (2 linear layers, `)
    expect(readdirSync(folder)).toEqual(['tune.json'])
  })

  test('--json is one document; a file of its own is not what layers read', () => {
    const other = join(folder, 'other.json')
    const { stdout, status } = run(...small, '--json', '--file', other)
    const report = JSON.parse(stdout) as TuneDocument
    expect(report).toMatchObject({ schema: 'nexus-demo/tune/1', ok: true, skipped: [], saved: { file: other } })
    expect(report.cells.map(({ linear, tokens }) => `${linear} ${tokens}`)).toEqual([
      'experts 1 1',
      'experts 1 16',
      'experts 2 1',
      'experts 2 16',
    ])
    expect(report.steps.map(({ mlp, tokens }) => `${mlp} ${tokens}`)).toEqual(['experts 1', 'experts 16'])
    for (const { pairs, heuristic } of report.steps) expect(pairs[0]?.variants).toEqual(heuristic)
    expect(report.saved?.tuning).toMatchObject({ hash: null, sources: [] })
    expect(status).toBe(0)
    expect(existsSync(file)).toBe(false)
    expect(JSON.parse(readFileSync(other, 'utf8'))).toMatchObject({ schema: 'nexus-tune/1' })
  })

  test("a model's configuration is enough; a dry run writes nothing", () => {
    const { stdout, status } = run(
      '--model',
      join(model, 'config.json'),
      '--tokens',
      '1',
      '--device',
      'cpu',
      '--dry-run',
    )
    expect(stdout).toContain('A dry run: nothing was written.')
    expect(status).toBe(0)
    expect(readdirSync(folder)).toEqual([])
  })

  test('what cannot be read is named', () => {
    const { stderr, status } = run('--model', '/no/such/model')
    expect(stderr).toBe('nexus-demo: /no/such/model: is neither a config.json nor a folder\n')
    expect(status).toBe(1)
    writeFileSync(file, 'not a tune file')
    const kept = run(...small)
    expect(kept.stderr).toMatch(/tune\.json: is not valid JSON/)
    expect(kept.status).toBe(1)
    expect(readFileSync(file, 'utf8')).toBe('not a tune file')
  })

  test('Ctrl-C leaves the kept file as it was', async () => {
    expect(run(...small).status).toBe(0)
    const before = readFileSync(file, 'utf8')
    const child = spawn(process.execPath, [cli, 'tune', ...small, '--seed', '1'], { env: environment() })
    let progress = ''
    child.stderr.on('data', (chunk: Buffer) => {
      progress += chunk.toString()
      if (progress.includes('(2 of 6)')) child.kill('SIGINT')
    })
    const code = await new Promise<number | null>((resolve) => child.on('close', resolve))
    expect(code).toBe(130)
    expect(readFileSync(file, 'utf8')).toBe(before)
    expect(readdirSync(folder)).toEqual(['tune.json'])
  })
})
