/**
 * `nexus-demo`. This file owns what belongs to the process: signals, broken pipes, exit codes. It never calls
 * `process.exit` on the normal way out, so that everything written is also flushed.
 */
import { readFileSync } from 'node:fs'
import { parseCommand } from './arguments.js'
import { codeOf, type ErrorReport, exitCode, exitCodeOf, Interrupted } from './exit.js'
import { helpText } from './help.js'
import { createOutput, type Output } from './output.js'
import { RecordingError } from './recorded.js'
import { createStyle, wantsColor } from './style.js'

const stop = new AbortController()
let stopCode: number = exitCode.interrupted
let output: Output | null = null

function onSignal(code: number): void {
  output?.progress.clear()
  // A second Ctrl-C, or a step that does not come back in time: leave at once.
  if (stop.signal.aborted) process.exit(code)
  stopCode = code
  process.exitCode = code
  // After the ^C that a terminal echoes, the shell's prompt belongs on a line of its own.
  process.stderr.write(
    `${process.stderr.isTTY ? '\n' : ''}nexus-demo: ${code === exitCode.interrupted ? 'interrupted' : 'terminated'}\n`,
  )
  stop.abort(new Interrupted('interrupted'))
  setTimeout(() => process.exit(code), 5000).unref()
}

/** The reader of a pipe has gone (`| head`): nobody is left to tell, so stop without a word. */
function onPipeError(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EPIPE') throw error
  output?.progress.clear()
  process.exit(process.exitCode ?? exitCode.ok)
}

function version(): string {
  const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
  return manifest.version
}

function fail(error: unknown): number {
  output?.progress.clear()
  if (stop.signal.aborted) return stopCode
  const code = exitCodeOf(error)
  const message = error instanceof Error ? error.message : String(error)
  const known = code !== exitCode.failed || codeOf(error).startsWith('ERR_NEXUS_') || isExpected(error)
  process.stderr.write(`nexus-demo: ${known || !(error instanceof Error) ? message : (error.stack ?? message)}\n`)
  if (code === exitCode.usage) process.stderr.write("Try 'nexus-demo --help'.\n")
  if (code === exitCode.unavailable)
    process.stderr.write("Try 'nexus-demo doctor': it says what is missing and what to do.\n")
  const report: ErrorReport = {
    schema: 'nexus-demo/error/1',
    ok: false,
    error: { code: codeOf(error), message, exitCode: code },
  }
  output?.document(report)
  return code
}

/** Errors about the user's files need no stack. */
function isExpected(error: unknown): boolean {
  return error instanceof RecordingError || (error instanceof Error && 'syscall' in error)
}

async function main(words: readonly string[]): Promise<number> {
  const command = parseCommand(words)
  const style = createStyle(wantsColor(process.stdout, process.env))
  if (command.name === 'help') {
    process.stdout.write(helpText(command.topic, style))
    return exitCode.ok
  }
  if (command.name === 'version') {
    process.stdout.write(`${version()}\n`)
    return exitCode.ok
  }
  // Loaded only now: help needs none of it, and the doctor must not fall ill with what it examines.
  if (command.name === 'doctor') return (await import('./doctor.js')).runDoctor(createOutput(command.json))
  if (command.name === 'top') {
    const { createTopOutput, runTop } = await import('./top.js')
    const top = createTopOutput(command.options.json)
    output = top
    return runTop(command.options, top, stop.signal)
  }
  if (command.name === 'tune') {
    output = createOutput(command.options.json)
    return (await import('./tune.js')).runTune(command.options, output, stop.signal)
  }
  output = createOutput(command.options.json)
  return (await import('./demo.js')).runDemo(command.options, version(), output, stop.signal)
}

process.stdout.on('error', onPipeError)
process.stderr.on('error', onPipeError)
process.on('SIGINT', () => onSignal(exitCode.interrupted))
process.on('SIGTERM', () => onSignal(exitCode.terminated))

process.exitCode = await main(process.argv.slice(2)).then((code) => (stop.signal.aborted ? stopCode : code), fail)
