/** `nexus-demo top`: a layer at work, a view of it every so often, until it is asked to end. */
import { resolveDevice } from '@nexus/core'
import type { TopOptions } from './arguments.js'
import { throwIfStopped } from './context.js'
import { exitCode } from './exit.js'
import { createOutput, type Output } from './output.js'
import { blockText, jsonText, LineDisplay, ScreenDisplay, type TopDisplay } from './top-display.js'
import { type Moment, topSnapshot } from './top-snapshot.js'
import { TopWorkload } from './top-workload.js'

/** Output whose progress is the display: what clears the one leaves the other. */
export interface TopOutput extends Output {
  readonly display: TopDisplay
  /** Whether the display goes when the command ends, and nothing of it is left to be seen. */
  readonly screen: boolean
}

export function createTopOutput(json: boolean): TopOutput {
  const output = createOutput(json)
  const screen = !json && process.stdout.isTTY === true && process.env.TERM !== 'dumb'
  // The same way out as a signal's: the handlers are in one place.
  const interrupt = () => void process.kill(process.pid, 'SIGINT')
  const display = screen
    ? new ScreenDisplay(output.style, process.stdout, process.stdin, interrupt)
    : new LineDisplay(process.stdout, json ? jsonText : blockText(output.style))
  const { progress } = output
  const clear = () => {
    progress.clear()
    display.leave()
  }
  return {
    ...output,
    display,
    screen,
    progress: { stage: (name) => progress.stage(name), tick: (done, total) => progress.tick(done, total), clear },
    // JSON here is one object a line: so is the report of a failure.
    document: (value) => void (json && process.stdout.write(`${JSON.stringify(value)}\n`)),
  }
}

/** @returns the exit code */
export async function runTop(options: TopOptions, output: TopOutput, signal: AbortSignal): Promise<number> {
  const { display } = output
  const device = resolveDevice(options.device)
  output.progress.stage('making a layer')
  const workload = await TopWorkload.create(device, options)
  try {
    throwIfStopped(signal)
    output.progress.clear()
    const view = (before: Moment | null, now: Moment) => topSnapshot(workload, now, before)
    const ends = options.seconds === null ? Number.POSITIVE_INFINITY : workload.startMs + 1000 * options.seconds
    let last = workload.moment()
    let snapshot = view(null, last)
    if (output.screen) await display.show(snapshot, signal)
    while (!display.quit.aborted && performance.now() < ends) {
      await workload.runUntil(Math.min(last.timeMs + options.intervalMs, ends), [signal, display.quit])
      throwIfStopped(signal)
      if (display.quit.aborted) break
      const now = workload.moment()
      snapshot = view(last, now)
      last = now
      await display.show(snapshot, signal)
    }
    display.leave()
    // The screen is gone: what it showed last is what is left to be read.
    if (output.screen) output.print(...blockText(output.style)(snapshot).trimEnd().split('\n'))
    return exitCode.ok
  } finally {
    display.leave()
    workload.dispose()
  }
}
