/** `nexus-demo top` as a child process, in pipes and in a terminal: what it prints, how it ends, and that the terminal is given back. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import type { TopSnapshot } from '../src/top-snapshot.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'nexus-demo-top-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))
const esc = String.fromCharCode(27)

function environment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  const env = { ...process.env }
  for (const name of ['NO_COLOR', 'FORCE_COLOR', 'TERM']) delete env[name]
  return { ...env, ...extra }
}
const top = ['top', '--device', 'cpu']
const run = (words: readonly string[], env: Record<string, string> = {}) =>
  spawnSync(process.execPath, [cli, ...top, ...words], { encoding: 'utf8', env: environment(env) })

const closed = (child: ChildProcess) => new Promise<number | null>((resolve) => child.on('close', resolve))

describe('in a pipe', () => {
  test('a block of plain lines for each interval, and then the end', () => {
    const { stdout, stderr, status } = run(['--seconds', '2', '--interval', '500'], { TERM: 'xterm-256color' })
    expect(stderr).toBe('nexus-demo: making a layer\n')
    expect(stdout).not.toContain(esc)
    expect(stdout.match(/^\[\d+\.\d s\] cpu f32 {2}[\d,]+ steps\/s/gm)?.length).toBeGreaterThan(1)
    const blocks = stdout.trimEnd().split('\n\n')
    for (const block of blocks) {
      for (const label of ['plan', 'slices', 'streams', 'graphs', 'power', 'experts'])
        expect(block).toMatch(new RegExp(`^${label} `, 'm'))
      expect(block.match(/\d+ +[\d.]+ % +(hot|warm|cold|unknown)/g)).toHaveLength(16)
    }
    expect(status).toBe(0)
  })

  test('colours where they are forced', () => {
    expect(run(['--seconds', '1'], { FORCE_COLOR: '1' }).stdout).toContain(`${esc}[1m`)
  })

  test('--json: an object a line, of a layer that really works and whose load really drifts', () => {
    const { stdout, stderr, status } = run(['--json', '--seconds', '3', '--interval', '300'])
    expect(stderr).not.toMatch(/rror/)
    const lines = stdout.trimEnd().split('\n')
    const views = lines.map((line) => JSON.parse(line) as TopSnapshot)
    expect(views.length).toBeGreaterThan(2)
    for (const [i, view] of views.entries()) {
      const before = views[i - 1]
      expect(view).toMatchObject({ schema: 'nexus-demo/top/1', device: 'cpu', numExperts: 16, topK: 2 })
      expect(view.steps).toBeGreaterThan(before?.steps ?? 0)
      expect(view.elapsedMs).toBeGreaterThan(before?.elapsedMs ?? 0)
      expect(view.rate?.stepsPerSecond).toBeGreaterThan(0)
      expect(view.experts?.list.reduce((sum, { share }) => sum + share, 0)).toBeCloseTo(1, 9)
      expect(view.slices?.list.reduce((sum, { experts }) => sum + experts, 0)).toBe(16)
      expect(view.slices?.list.reduce((sum, { sms }) => sum + sms, 0)).toBe(8)
      expect(view.streams?.list.reduce((sum, { experts }) => sum + experts, 0)).toBe(16)
      // Unknown is null with the reason; known has its source.
      if (view.power.watts === null) expect(view.power.reason).toMatch(/\w/)
      else expect(view.power.source).not.toBeNull()
    }
    const last = views.at(-1)
    expect(last?.experts?.list.some(({ temperature }) => temperature === 'hot')).toBe(true)
    expect(last?.experts?.list.some(({ temperature }) => temperature === 'cold')).toBe(true)
    expect(last?.graphs?.hits).toBeGreaterThan(0)
    expect(last?.experts?.list.map(({ share }) => share)).not.toEqual(views[0]?.experts?.list.map(({ share }) => share))
    expect(last?.strategy).toMatchObject({ failures: 0, lastFailure: null })
    expect(status).toBe(0)
  })

  test.each([
    ['tiered', 'slices', 'streams'],
    ['cooperative', 'slices', 'streams'],
    ['streams', 'streams', 'slices'],
  ] as const)('--strategy %s has its %s in use', (strategy, used, off) => {
    const { stdout } = run(['--json', '--seconds', '1', '--interval', '500', '--strategy', strategy])
    const view = JSON.parse(stdout.split('\n')[0] ?? '') as TopSnapshot
    expect(view.strategy.name).toBe(strategy)
    expect(view[used]?.inUse).toBe(true)
    expect(view[off]).toBeNull()
  })

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s: exit %i, the last line is whole', async (signal, code) => {
    const child = spawn(process.execPath, [cli, ...top, '--json', '--interval', '100'], { env: environment() })
    let stdout = ''
    child.stdout.on('data', (chunk) => {
      stdout += chunk
      if (stdout.includes('\n')) child.kill(signal)
    })
    expect(await closed(child)).toBe(code)
    expect(stdout.endsWith('\n')).toBe(true)
    for (const line of stdout.trimEnd().split('\n')) JSON.parse(line)
  })

  test('a reader that goes away is no error', async () => {
    const child = spawn(process.execPath, [cli, ...top, '--interval', '100'], { env: environment() })
    let stderr = ''
    child.stderr.on('data', (chunk) => {
      stderr += chunk
    })
    child.stdout.once('data', () => child.stdout.destroy())
    expect(await closed(child)).toBe(0)
    expect(stderr).toBe('nexus-demo: making a layer\n')
  })

  test('an addon that cannot be loaded: exit 3, as one line of JSON too', () => {
    const broken = join(scratch, 'broken.node')
    writeFileSync(broken, 'not a library')
    const { stdout, stderr, status } = run(['--json'], { NEXUS_NATIVE_PATH: broken })
    expect(stderr).toContain('nexus-demo doctor')
    expect(stdout.trimEnd().split('\n')).toHaveLength(1)
    expect(JSON.parse(stdout)).toMatchObject({ ok: false, error: { code: 'ERR_NEXUS_NATIVE_LOAD', exitCode: 3 } })
    expect(status).toBe(3)
  })

  test('a wrong command line: exit 2', () => {
    const { stderr, status } = run(['--interval', '5'])
    expect(stderr).toContain("--interval: expected an integer from 100 to 60000, got '5'")
    expect(status).toBe(2)
  })

  test('help', () => {
    const { stdout, status } = run(['--help'])
    for (const part of ['Usage', '--interval <ms>', '--seconds <n>', '--json', 'Keys', 'Ctrl-C', 'Exit codes'])
      expect(stdout).toContain(part)
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(130)
    expect(status).toBe(0)
  })
})

// `script` gives the command a terminal; it is part of util-linux.
const script = spawnSync('script', ['--version']).status === 0

describe.skipIf(!script)(`in a terminal${script ? '' : ' (needs util-linux)'}`, () => {
  const enter = `${esc}[?1049h`
  const leave = `${esc}[?1049l`

  /** Runs it in a terminal of 24 × 100, and does something as soon as the screen has this text. */
  async function inTerminal(text: string, action: (child: ChildProcess) => void, env: Record<string, string> = {}) {
    const words = [process.execPath, cli, ...top, '--interval', '200'].map((word) => `'${word}'`).join(' ')
    const command = `stty rows 24 cols 100; ${words}; code=$?; stty -a; exit $code`
    const child = spawn('script', ['-qefc', command, '/dev/null'], {
      env: environment({ TERM: 'xterm-256color', ...env }),
    })
    let screen = ''
    let done = false
    child.stdout.on('data', (chunk) => {
      screen += chunk
      if (!done && screen.includes(text)) {
        done = true
        action(child)
      }
    })
    const code = await closed(child)
    return { code, screen, after: screen.slice(screen.lastIndexOf(leave) + leave.length) }
  }
  const press = (keys: string) => (child: ChildProcess) => void child.stdin?.write(keys)

  test('q ends it: the terminal is as it was, and the last view stays as plain lines', async () => {
    const { code, screen, after } = await inTerminal('tokens/s', press('q'))
    expect(code).toBe(0)
    expect(screen).toContain(enter)
    expect(screen).toContain('(q quits)')
    expect(screen.lastIndexOf(`${esc}[?25h`)).toBeGreaterThan(screen.lastIndexOf(`${esc}[?25l`))
    expect(after).toMatch(/^.*\[\d+\.\d s\].* cpu f32 {2}[\d,]+ steps\/s/m)
    // Not raw any more.
    expect(after).toMatch(/[^-]icanon/)
    expect(after).toMatch(/[^-]echo\b/)
  })

  test('Ctrl-C: exit 130, said on the screen that was there before', async () => {
    const { code, screen, after } = await inTerminal('tokens/s', press('\u0003'))
    expect(code).toBe(130)
    expect(screen).toContain(enter)
    expect(after).toMatch(/nexus-demo: interrupted\r\n/)
    expect(after).toMatch(/[^-]icanon/)
    expect(after).not.toMatch(/rror|steps\/s/)
  })

  test('it follows the size of the terminal, and other keys do nothing', async () => {
    let resized = ''
    const { code, screen } = await inTerminal('tokens/s', (child) => {
      press('x\u001b[A')(child)
      // The terminal that `script` made is that of its child.
      const [pid] = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').split(' ')
      resized = readlinkSync(`/proc/${pid}/fd/0`)
      spawnSync('stty', ['-F', resized, 'rows', '10', 'cols', '40'])
      setTimeout(() => press('q')(child), 1500)
    })
    expect(resized).toMatch(/^\/dev\/pts/)
    expect(code).toBe(0)
    const frames = screen.slice(screen.indexOf(enter), screen.lastIndexOf(leave)).split(`${esc}[?2026h`)
    const rows = (frame: string) => Math.max(...[...frame.matchAll(/\[(\d+);1H/g)].map(([, row]) => Number(row)))
    expect(rows(frames[1] ?? '')).toBeGreaterThan(15)
    expect(rows(frames.at(-1) ?? '')).toBe(10)
    expect(frames.at(-1)).toMatch(/busiest 2 of 16/)
  })

  test('without colours with NO_COLOR; without a screen on a dumb terminal', async () => {
    const grey = await inTerminal('tokens/s', press('q'), { NO_COLOR: '1' })
    expect(grey.screen).not.toContain(`${esc}[1m`)
    expect(grey.screen).not.toContain(`${esc}[31m`)
    const dumb = await inTerminal('tokens/s', press('\u0003'), { TERM: 'dumb' })
    expect(dumb.screen).not.toContain(enter)
    expect(dumb.code).toBe(130)
  })
})
