// Child processes of the workspace's commands: exit codes and signals pass through, and what only sets things up never
// writes to stdout, so that `npm run --silent demo -- --json` prints nothing but the JSON.
import { spawn } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** Prints one line on stderr and ends the process. */
export function stop(message, code = 1) {
  process.stderr.write(`nexus: ${message}\n`)
  process.exit(code)
}

/** Thrown by `setUp` when its command fails; `code` is the exit code to end with. */
export class CommandFailed extends Error {
  constructor(command, code, signal) {
    super(`${command} ${signal ? `was ended by ${signal}` : `failed with exit code ${code}`}`)
    this.code = code
    this.signal = signal
  }
}

// Waits for the child, keeping this process alive while signals take the child down first. A terminal sends Ctrl-C to
// the whole group, so it is passed on only where there is none.
function wait(child, command) {
  const pass = (signal) => {
    if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal)
  }
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP']
  for (const signal of signals) process.on(signal, pass)
  return new Promise((resolve, reject) => {
    child.on('error', (error) => reject(new Error(`${command} cannot be run: ${error.message}`)))
    child.on('close', (code, signal) => {
      for (const each of signals) process.off(each, pass)
      resolve({ code, signal })
    })
  })
}

/**
 * Runs a set-up command with its stdout on our stderr; silent when it succeeds within `patienceMs`, else everything is
 * shown from the beginning. Throws CommandFailed.
 */
export async function setUp(command, args, { env = {}, cwd = root, patienceMs = 3000 } = {}) {
  const child = spawn(command, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } })
  let held = []
  const show = () => {
    for (const chunk of held ?? []) process.stderr.write(chunk)
    held = null
  }
  const take = (chunk) => (held ? held.push(chunk) : process.stderr.write(chunk))
  child.stdout.on('data', take)
  child.stderr.on('data', take)
  const timer = setTimeout(show, patienceMs)
  try {
    const { code, signal } = await wait(child, command)
    if (code !== 0) {
      show()
      throw new CommandFailed([command, ...args].join(' '), code ?? 1, signal)
    }
  } finally {
    clearTimeout(timer)
  }
}

/** Runs a command on our own stdin, stdout and stderr and ends as it ends: same exit code, same signal. */
export async function become(command, args, { env = {}, cwd = root } = {}) {
  const child = spawn(command, args, { cwd, stdio: 'inherit', env: { ...process.env, ...env } })
  endAs(await wait(child, command))
}

/** Ends this process as a child ended. */
export function endAs({ code, signal }) {
  if (signal) process.kill(process.pid, signal)
  else process.exit(code ?? 1)
}
