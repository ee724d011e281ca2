/** The built command as a child process: what a user, a pipe and a script see. */
import { type SpawnSyncReturns, spawn, spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { DemoReport } from '../src/report.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const assets = fileURLToPath(new URL('../assets/', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'nexus-demo-cli-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** The caller's environment without what decides about colours, which test runners set. */
function environment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  const env = { ...process.env }
  for (const name of ['NO_COLOR', 'FORCE_COLOR', 'TERM']) delete env[name]
  return { ...env, ...extra }
}
function run(words: readonly string[], env: Record<string, string> = {}): SpawnSyncReturns<string> {
  return spawnSync(process.execPath, [cli, ...words], { encoding: 'utf8', env: environment(env) })
}

const esc = String.fromCharCode(27)
const quick = ['--device', 'cpu', '--runs', '2', '--batches', '3,16'] as const

describe('the demo', () => {
  let result: SpawnSyncReturns<string>
  beforeAll(() => {
    result = run(quick)
  })
  test('proves, compares and profiles, and says that all held', () => {
    expect(result.stderr).not.toContain('rror')
    expect(result.stdout).toMatch(/^Machine\n/)
    expect(result.stdout).toMatch(/Checkpoint: qwen3_moe \(model type qwen3_moe\)/)
    expect(result.stdout.match(/ equal {2}ok$/gm)).toHaveLength(4)
    expect(result.stdout).toMatch(/^ {4}3 +[\d.]+ +[\d.]+ +[\d.]+× +[\d,]+ {2}agree$/m)
    expect(result.stdout).toMatch(/1,797 images/)
    expect(result.stdout).toMatch(/█/)
    expect(result.stdout).toMatch(/All proofs held, in [\d.]+ s\.\n$/)
    expect(result.status).toBe(0)
  })
  test('writes plain lines of progress to a stderr that is no terminal', () => {
    expect(result.stderr).toMatch(/^nexus-demo: proving the checkpoint qwen3_moe\n/)
    expect(result.stderr).toMatch(/^nexus-demo: timing batch 16: 2 runs each$/m)
    expect(result.stderr).not.toContain(esc)
    expect(result.stderr).not.toContain('\r')
  })
  test('has no colours where there is no terminal, and has them where they are forced', () => {
    expect(result.stdout).not.toContain(esc)
    expect(run(['--help'], { FORCE_COLOR: '1' }).stdout).toContain(`${esc}[1m`)
    expect(run(['--help'], { NO_COLOR: '1' }).stdout).not.toContain(esc)
  })
})

describe('--json', () => {
  let result: SpawnSyncReturns<string>
  beforeAll(() => {
    result = run(['--json', '--seed', '5', ...quick], { FORCE_COLOR: '1' })
  })
  test('prints one document and nothing else', () => {
    const report = JSON.parse(result.stdout) as DemoReport
    expect(report).toMatchObject({ schema: 'nexus-demo/report/1', ok: true, device: 'cpu', seed: 5 })
    expect(result.stdout.startsWith('{')).toBe(true)
    expect(result.stdout).not.toContain(esc)
    expect(result.status).toBe(0)
  })
  test('has what the tables show', () => {
    const { proof, comparison, digits } = JSON.parse(result.stdout) as DemoReport
    expect(proof.rows.map(({ layer, dtype, ok }) => ({ layer, dtype, ok }))).toEqual([
      { layer: 0, dtype: 'f32', ok: true },
      { layer: 0, dtype: 'bf16', ok: true },
      { layer: 1, dtype: 'f32', ok: true },
      { layer: 1, dtype: 'bf16', ok: true },
    ])
    for (const row of proof.rows) expect(row.relativeError).toBeLessThanOrEqual(row.tolerance ?? 0)
    expect(comparison).toMatchObject({ dtype: 'f32', hiddenDim: 1024, numExperts: 8, topK: 2 })
    expect(comparison.rows.map(({ batch, runs }) => [batch, runs])).toEqual([
      [3, 2],
      [16, 2],
    ])
    for (const row of comparison.rows) expect(row.speedup).toBeCloseTo(row.baselineMs / row.nexusMs, 9)
    expect(digits.images).toBe(1797)
    expect(digits.load.experts.reduce((sum, expert) => sum + expert.totalCount, 0)).toBe(1797 * digits.topK)
    expect(digits.load.experts.every((expert) => expert.temperature !== 'unknown')).toBe(true)
  })
  test('the same seed routes the same way, another one does not', () => {
    const counts = (seed: string) =>
      (JSON.parse(run(['--json', '--seed', seed, ...quick]).stdout) as DemoReport).digits.load.experts.map(
        (e) => e.totalCount,
      )
    const five = (JSON.parse(result.stdout) as DemoReport).digits.load.experts.map((e) => e.totalCount)
    expect(counts('5')).toEqual(five)
    expect(counts('6')).not.toEqual(five)
  })
})

describe('proofs that fail', () => {
  const corrupted = join(scratch, 'corrupted')
  cpSync(join(assets, 'qwen3_moe'), corrupted, { recursive: true })
  const weights = readFileSync(join(corrupted, 'model.safetensors'))
  const header = Number(weights.readBigUInt64LE(0))
  const entries = JSON.parse(weights.toString('utf8', 8, 8 + header)) as Record<
    string,
    { data_offsets: [number, number] }
  >
  const [begin] = entries['model.layers.1.mlp.experts.3.down_proj.weight']?.data_offsets ?? [0, 0]
  // One element of one expert of layer 1 becomes 3.0 (bfloat16 0x4040).
  weights.writeUInt16LE(0x4040, 8 + header + begin)
  writeFileSync(join(corrupted, 'model.safetensors'), weights)

  test('one wrong weight of one expert is found: exit 1', () => {
    const result = run(['--checkpoint', corrupted, ...quick])
    expect(result.stdout).toMatch(/^ +1 {2}f32 .*FAILED$/m)
    expect(result.stdout).toMatch(/^ +0 {2}f32 .*ok$/m)
    expect(result.stdout).toMatch(/FAILED after .*checkpoint proof did not hold/)
    expect(result.status).toBe(1)
  })
  test('--json says so too', () => {
    const result = run(['--json', '--checkpoint', corrupted, ...quick])
    const report = JSON.parse(result.stdout) as DemoReport
    expect(report.ok).toBe(false)
    expect(report.proof.rows.filter((row) => !row.ok).every((row) => row.layer === 1)).toBe(true)
    expect(result.status).toBe(1)
  })
  test('a truncated file is an error that names it, without a stack: exit 1', () => {
    const truncated = join(scratch, 'truncated')
    cpSync(join(assets, 'qwen3_moe'), truncated, { recursive: true })
    writeFileSync(join(truncated, 'model.safetensors'), weights.subarray(0, 100_000))
    const result = run(['--json', '--checkpoint', truncated, ...quick])
    expect(result.stderr).toContain('model.safetensors')
    expect(result.stderr).not.toMatch(/^ {4}at /m)
    expect(JSON.parse(result.stdout)).toMatchObject({ ok: false, error: { code: 'ERR_NEXUS_CHECKPOINT', exitCode: 1 } })
    expect(result.status).toBe(1)
  })
  test("a family that Nexus does not know is the checkpoint's fault, not the device's: exit 1", () => {
    const unknown = join(scratch, 'unknown')
    cpSync(join(assets, 'qwen3_moe'), unknown, { recursive: true })
    const config = readFileSync(join(unknown, 'config.json'), 'utf8')
    writeFileSync(
      join(unknown, 'config.json'),
      config.replaceAll('qwen3_moe', 'other_moe').replaceAll('Qwen3Moe', 'OtherMoe'),
    )
    const result = run(['--checkpoint', unknown, ...quick])
    expect(result.stderr).toContain('other_moe')
    expect(result.stderr).not.toMatch(/doctor|^ {4}at /m)
    expect(result.status).toBe(1)
  })
  test('a folder that is no checkpoint: exit 1, naming what is missing', () => {
    const empty = join(scratch, 'empty')
    mkdirSync(empty)
    const result = run(['--checkpoint', empty, ...quick])
    expect(result.stderr).toMatch(/^nexus-demo: .*config\.json/m)
    expect(result.stderr).not.toMatch(/^ {4}at /m)
    expect(result.status).toBe(1)
  })
})

test('a checkpoint without a recording is seen to run, and not called proved', () => {
  const silent = join(scratch, 'silent')
  cpSync(join(assets, 'qwen3_moe'), silent, { recursive: true })
  rmSync(join(silent, 'moe_io.safetensors'))
  const report = JSON.parse(run(['--json', '--checkpoint', silent, ...quick]).stdout) as DemoReport
  expect(report.proof).toMatchObject({ recorded: false, ok: true })
  expect(report.proof.rows[0]).toMatchObject({ relativeError: null, differingTokens: null, repeatable: true })
})

describe('wrong command lines: exit 2, the word, and where to look', () => {
  test.each([
    [['--sed', '3'], "unknown option '--sed'; did you mean '--seed'?"],
    [['--runs', 'x'], "--runs: expected an integer from 1 to 1000, got 'x'"],
    [['--checkpoint', join(scratch, 'nowhere')], '--checkpoint: '],
    [['dokter'], "unexpected argument 'dokter'; did you mean 'doctor'?"],
  ])('%j', (words, message) => {
    const result = run(words)
    expect(result.stderr).toContain(`nexus-demo: ${message}`)
    expect(result.stderr).toContain("Try 'nexus-demo --help'.")
    expect(result.stdout).toBe('')
    expect(result.status).toBe(2)
  })
})

describe('help and version', () => {
  test('help teaches by example', () => {
    const { stdout, status } = run(['--help'])
    for (const part of ['Usage', 'Examples', 'Exit codes', '--device', '--checkpoint', 'doctor'])
      expect(stdout).toContain(part)
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(130)
    expect(status).toBe(0)
  })
  test('version is that of the package', () => {
    const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
      version: string
    }
    expect(run(['--version']).stdout).toBe(`${manifest.version}\n`)
  })
})

describe('doctor', () => {
  test('says what there is: exit 0 where the CPU can be used', () => {
    const { stdout, status } = run(['doctor'])
    for (const name of ['node', 'addon', 'cpu', 'cuda', 'nvml', 'mig', 'energy gpu', 'energy cpu']) {
      expect(stdout).toMatch(new RegExp(`^(ok|missing) +${name} `, 'm'))
    }
    expect(stdout).toMatch(/Usable\. --device auto takes (cpu|cuda:0)\.\n$/)
    expect(status).toBe(0)
  })
  test('--json is one document', () => {
    const report = JSON.parse(run(['doctor', '--json']).stdout) as {
      schema: string
      usable: boolean
      findings: unknown[]
    }
    expect(report).toMatchObject({ schema: 'nexus-demo/doctor/1', usable: true })
    expect(report.findings.length).toBeGreaterThanOrEqual(8)
  })
  test('an addon that cannot be loaded: exit 3 and what to do, as text and as JSON', () => {
    const broken = join(scratch, 'broken.node')
    writeFileSync(broken, 'not a library')
    const text = run(['doctor'], { NEXUS_NATIVE_PATH: broken })
    expect(text.stdout).toMatch(/^broken +addon /m)
    expect(text.stdout).toMatch(/→ NEXUS_NATIVE_PATH is set to .*unset it/)
    expect(text.status).toBe(3)
    const json = run(['doctor', '--json'], { NEXUS_NATIVE_PATH: broken })
    expect(JSON.parse(json.stdout)).toMatchObject({ usable: false, device: null })
    expect(json.status).toBe(3)
    const demo = run(['--json'], { NEXUS_NATIVE_PATH: broken })
    expect(demo.stderr).toContain('nexus-demo doctor')
    expect(JSON.parse(demo.stdout)).toMatchObject({ ok: false, error: { code: 'ERR_NEXUS_NATIVE_LOAD', exitCode: 3 } })
    expect(demo.status).toBe(3)
  })
})

describe('on a GPU', () => {
  const found = (JSON.parse(run(['doctor', '--json']).stdout || '{}') as { device?: string }).device === 'cuda:0'
  const required = process.env.NEXUS_REQUIRE_GPU === '1'
  test.skipIf(!found && !required)(`proves and compares in bf16${found ? '' : ' (CUDA cannot be used here)'}`, () => {
    const result = run(['--json', '--device', 'cuda', '--runs', '2'])
    expect(result.stderr).not.toContain('rror')
    const report = JSON.parse(result.stdout) as DemoReport
    expect(report).toMatchObject({ ok: true, device: 'cuda:0', comparison: { dtype: 'bf16' } })
    expect(report.proof.rows).toHaveLength(4)
    expect(result.status).toBe(0)
  })
})

test('a device that is not there: exit 3', () => {
  const result = run(['--device', 'cuda:99'])
  expect(result.stderr).toMatch(/^nexus-demo: .+/)
  expect(result.stderr).toContain('nexus-demo doctor')
  expect(result.status).toBe(3)
})

describe('stopped from outside', () => {
  const longRun = ['--device', 'cpu', '--runs', '1000', '--json']
  function stopAfter(
    text: string,
    signal: NodeJS.Signals,
  ): Promise<{ code: number | null; stdout: string; stderr: string }> {
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [cli, ...longRun], { env: environment() })
      let stdout = ''
      let stderr = ''
      let sent = false
      child.stdout.on('data', (chunk) => {
        stdout += chunk
      })
      child.stderr.on('data', (chunk) => {
        stderr += chunk
        if (!sent && stderr.includes(text)) {
          sent = true
          child.kill(signal)
        }
      })
      child.on('error', reject)
      child.on('close', (code) => resolve({ code, stdout, stderr }))
    })
  }
  test.each(['proving the checkpoint', 'making a layer', 'timing batch 64'])(
    'SIGINT while %s: exit 130, no half document',
    async (stage) => {
      const { code, stdout, stderr } = await stopAfter(stage, 'SIGINT')
      expect(code).toBe(130)
      expect(stdout).toBe('')
      expect(stderr).not.toMatch(/rror|^ {4}at /m)
    },
  )
  // `script` gives the command a terminal; it is part of util-linux.
  const script = spawnSync('script', ['--version']).status === 0
  test.skipIf(!script)(`Ctrl-C in a terminal gives the cursor back${script ? '' : ' (needs util-linux)'}`, async () => {
    const words = [process.execPath, cli, '--device', 'cpu', '--runs', '1000'].map((word) => `'${word}'`).join(' ')
    const command = `stty rows 24 cols 100; exec ${words}`
    const child = spawn('script', ['-qefc', command, '/dev/null'], { env: environment({ TERM: 'xterm-256color' }) })
    let screen = ''
    let sent = false
    child.stdout.on('data', (chunk) => {
      screen += chunk
      if (!sent && screen.includes('timing batch 64')) {
        sent = true
        child.stdin.write('\u0003')
      }
    })
    const code = await new Promise((resolve) => child.on('close', resolve))
    expect(code).toBe(130)
    expect(screen).toContain(`${esc}[1mMachine${esc}[22m`)
    expect(screen).toContain(`${esc}[?25l`)
    expect(screen.lastIndexOf(`${esc}[?25h`)).toBeGreaterThan(screen.lastIndexOf(`${esc}[?25l`))
    expect(screen).toMatch(/nexus-demo: interrupted\r\n/)
  })
  test('SIGTERM: exit 143', async () => {
    expect((await stopAfter('timing batch 64', 'SIGTERM')).code).toBe(143)
  })
  test('a reader that goes away is no error', async () => {
    const child = spawn(process.execPath, [cli, ...quick], { env: environment() })
    let stderr = ''
    child.stderr.on('data', (chunk) => {
      stderr += chunk
    })
    child.stdout.destroy()
    const code = await new Promise((resolve) => child.on('close', resolve))
    expect(stderr).not.toContain('EPIPE')
    expect(code).toBe(0)
  })
})
