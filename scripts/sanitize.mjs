// The C++ tests under compute-sanitizer, each in a process of its own and a few at once: the tool slows kernels down by
// a hundred times and more, so a test has a time limit, and one that meets it is counted as not ended, not as clean.
// Tests of many cases are divided among several processes.
// Needs a GPU and the CUDA toolkit's compute-sanitizer; runs in a checkout and in the bundle.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { root, stop } from './child.mjs'
import { closingLine, parseClosingLine } from './totals.mjs'

const TOOLS = ['memcheck', 'racecheck', 'synccheck', 'initcheck']
const HELP = `Usage: node scripts/sanitize.mjs [${TOOLS.join(' | ')}] [options]

Runs each C++ test under compute-sanitizer (memcheck unless told), several at once, and prints how each ended.

  --filter TEXT         tests whose name contains it (repeat it for more)
  --parts N             divide each test of many cases among N processes (1); racecheck keeps what it saw of every
                        launch in the host's memory, tens of GiB for long tests
  --seconds N           the limit of a test, or of a part (120)
  --total-seconds N     start no test after so long (500)
  --jobs N              tests at once (half the cores, at most 8)
  --logs FOLDER         keep what each test printed that was not clean
  --program FILE        the test program (kernels/build/test/native_test)
`
// What the sanitizer ends with where it found something; no test program does.
const FOUND = 86

function options() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        parts: { type: 'string', default: '1' },
        filter: { type: 'string', multiple: true, default: [''] },
        seconds: { type: 'string', default: '120' },
        'total-seconds': { type: 'string', default: '500' },
        jobs: { type: 'string', default: String(Math.max(1, Math.min(8, Math.floor(availableParallelism() / 2)))) },
        logs: { type: 'string' },
        program: { type: 'string', default: join(root, 'kernels', 'build', 'test', 'native_test') },
        help: { type: 'boolean', short: 'h', default: false },
      },
    })
  } catch (error) {
    stop(`${error.message}; see --help`, 2)
  }
}

function positive(name, text) {
  const value = Number(text)
  if (!Number.isFinite(value) || value <= 0) stop(`--${name}: expected a number over 0, got '${text}'`, 2)
  return value
}

function sanitizer() {
  for (const command of ['compute-sanitizer', '/usr/local/cuda/bin/compute-sanitizer']) {
    if (spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0) return command
  }
  stop('compute-sanitizer is not on PATH: it comes with the CUDA toolkit')
}

const { values, positionals } = options()
if (values.help) {
  process.stdout.write(HELP)
  process.exit(0)
}
const tool = positionals[0] ?? 'memcheck'
if (!TOOLS.includes(tool) || positionals.length > 1)
  stop(`expected one of ${TOOLS.join(', ')}, got '${positionals.join(' ')}'`, 2)
const seconds = positive('seconds', values.seconds)
const totalSeconds = positive('total-seconds', values['total-seconds'])
const parts = Math.ceil(positive('parts', values.parts))
const jobs = Math.ceil(positive('jobs', values.jobs))
const program = resolve(values.program)
if (!existsSync(program)) stop(`${program} is not there: npm run build`)
const command = sanitizer()
function list(flag) {
  const listed = spawnSync(program, [flag], { encoding: 'utf8' })
  if (listed.status !== 0) stop(`${program} ${flag} failed: ${listed.stderr}`)
  return listed.stdout.split('\n').filter((name) => name !== '')
}
const names = list('--list').filter((name) => values.filter.some((text) => name.includes(text)))
if (names.length === 0) stop(`no test's name contains ${values.filter.map((text) => `'${text}'`).join(' or ')}`, 2)
const inParts = new Set(parts > 1 ? list('--list-in-parts') : [])
/** What is run: a test, or the i-th of its parts. */
const runs = names.flatMap((name) =>
  inParts.has(name)
    ? Array.from({ length: parts }, (_, i) => ({ name, part: `${i + 1}/${parts}` }))
    : [{ name, part: '' }],
)

const running = new Set()
let interrupted = false
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    interrupted = true
    for (const child of running) kill(child)
  })
}
// The sanitizer starts the test as a child of its own: both are one process group.
function kill(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // it has just ended
  }
}

/** What the tool says of a program that calls no CUDA at all. It is an error to the tool. */
const NO_CUDA = 'terminated before first instrumented API call'

/**
 * How one test ends: clean, found (errors), failed (the test itself), killed (or crashed: without its closing line),
 * skipped (nothing for the tool to see), or not ended in time.
 */
function sanitize({ name, part }) {
  return new Promise((done) => {
    const args = ['--tool', tool, '--error-exitcode', String(FOUND), '--print-limit', '20', '--report-api-errors', 'no']
    const child = spawn(command, [...args, program, name], {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      // Each allocation is the driver's own, so that one past its end is seen.
      env: { ...process.env, NEXUS_CUDA_POOL: '0', NEXUS_TEST_PART: part },
    })
    running.add(child)
    let text = ''
    let late = false
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += chunk))
    const timer = setTimeout(() => {
      late = true
      kill(child)
    }, seconds * 1000)
    child.on('error', (error) => (text += error.message))
    child.on('close', (code) => {
      clearTimeout(timer)
      running.delete(child)
      const totals = parseClosingLine(text)
      const ended = late
        ? 'not ended'
        : code === FOUND
          ? 'found'
          : totals?.failed === 0 && text.includes(NO_CUDA)
            ? 'skipped'
            : totals === null
              ? 'killed'
              : code !== 0
                ? 'failed'
                : totals.passed === 0
                  ? 'skipped'
                  : 'clean'
      done({ name: part === '' ? name : `${name} [${part}]`, ended, text })
    })
  })
}

const started = Date.now()
const queue = [...runs]
const results = []
async function work() {
  while (queue.length > 0 && !interrupted) {
    if (Date.now() - started > totalSeconds * 1000) return
    const result = await sanitize(queue.shift())
    results.push(result)
    if (interrupted) return
    const elapsed = Math.round((Date.now() - started) / 1000)
    process.stdout.write(`${result.ended.padEnd(9)} ${result.name} (${elapsed} s, ${results.length}/${runs.length})\n`)
    if (result.ended === 'clean' || result.ended === 'skipped') continue
    if (values.logs !== undefined) {
      mkdirSync(values.logs, { recursive: true })
      const file = result.name.replace(/[^\w]+/g, '-')
      writeFileSync(join(values.logs, `${tool}-${file.slice(0, 80)}${file.slice(80).slice(-8)}.log`), result.text)
    }
    if (result.ended === 'killed')
      process.stdout.write("ended without a closing line: it crashed, or the host's memory ran out (--jobs, --parts)\n")
    if (result.ended !== 'not ended') process.stdout.write(`${result.text.split('\n').slice(-25).join('\n')}\n`)
  }
}
await Promise.all(Array.from({ length: jobs }, work))
if (interrupted) process.exit(130)

const count = (...ends) => results.filter((result) => ends.includes(result.ended)).length
const left = runs.length - results.length
process.stdout.write(
  `${tool}: ${count('clean')} clean, ${count('found')} with findings, ${count('failed')} failed by themselves, ${count('killed')} killed, ${count('not ended')} not ended within ${seconds} s, ${count('skipped')} skipped, ${left} not started\n`,
)
process.stdout.write(
  `${closingLine({ passed: count('clean'), failed: count('found', 'failed', 'killed'), skipped: count('skipped', 'not ended') + left })}\n`,
)
process.exitCode = count('found', 'failed', 'killed') > 0 || count('clean') === 0 ? 1 : 0
