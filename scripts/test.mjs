// Every test of the built workspace: the C++ programs, then vitest once over all projects, then one closing line with the
// totals of both. Arguments go to vitest. Runs in a checkout (npm test builds first) and in the bundle.
import { spawn } from 'node:child_process'
import { accessSync, constants, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { root } from './child.mjs'
import { closingLine, parseClosingLine, sum } from './totals.mjs'

const one = { passed: 0, failed: 1, skipped: 0 }
const PROGRAM_TIMEOUT_MS = 900_000
let interrupted = false

// Runs a program on our stdout and stderr; returns how it ended and, where asked for, what it printed.
function execute(command, args, { cwd, env = {}, keep = false, timeoutMs = 0 }) {
  const child = spawn(command, args, {
    cwd,
    stdio: ['ignore', keep ? 'pipe' : 'inherit', 'inherit'],
    env: { ...process.env, ...env },
    timeout: timeoutMs,
    killSignal: 'SIGKILL',
  })
  let text = ''
  child.stdout?.on('data', (chunk) => {
    text += chunk
    process.stdout.write(chunk)
  })
  const interrupt = (signal) => {
    interrupted = true
    if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal)
  }
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, interrupt)
  return new Promise((resolve) => {
    const done = (code, ended) => {
      for (const signal of ['SIGINT', 'SIGTERM']) process.off(signal, interrupt)
      resolve({ code, ended, text })
    }
    child.on('error', (error) => done(null, error.message))
    child.on('close', (code, signal) => done(code, signal ?? `exit code ${code}`))
  })
}

function isProgram(file) {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}

// C++ tests end with their own closing line and print each test; a program that dies counts as one failure more.
async function nativeTests() {
  const folder = join(root, 'kernels', 'build', 'test')
  const names = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith('_test')) : []
  const programs = names.sort().filter((name) => isProgram(join(folder, name)))
  if (programs.length === 0) {
    console.log(`FAIL no C++ test program in ${folder}`)
    return one
  }
  const totals = []
  for (const name of programs) {
    if (interrupted) break
    console.log(`\nC++ ${name}`)
    const { code, ended, text } = await execute(join(folder, name), [], {
      cwd: join(root, 'kernels'),
      keep: true,
      timeoutMs: PROGRAM_TIMEOUT_MS,
    })
    const counted = parseClosingLine(text) ?? { passed: 0, failed: 0, skipped: 0 }
    totals.push(counted)
    if (code !== 0 && counted.failed === 0) {
      console.log(`FAIL ${name} ended with ${ended}`)
      totals.push(one)
    }
  }
  return sum(totals)
}

async function vitestTests(args) {
  const scratch = mkdtempSync(join(tmpdir(), 'nexus-totals-'))
  const file = join(scratch, 'totals.json')
  // An explicit --reporter replaces those of the configuration, the counting one included.
  const counting = args.some((arg) => arg.startsWith('--reporter')) ? ['--reporter=./scripts/closing-line.ts'] : []
  try {
    const { code, ended } = await execute(
      process.execPath,
      [join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run', ...args, ...counting],
      { cwd: root, env: { NEXUS_TOTALS_FILE: file } },
    )
    const counted = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : { passed: 0, failed: 0, skipped: 0 }
    if (code !== 0 && counted.failed === 0) {
      console.log(`FAIL vitest ended with ${ended}`)
      return sum([counted, one])
    }
    return counted
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

const totals = [await nativeTests()]
if (!interrupted) totals.push(await vitestTests(process.argv.slice(2)))
const total = sum(totals)
if (interrupted) process.exit(130)
console.log(closingLine(total))
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0
