/**
 * Where text goes: results to stdout, progress to stderr. On a terminal progress is one line that is rewritten and in the end
 * removed; elsewhere (a file, a pipe, a log) it is one plain line for each stage, so that nothing has to be untangled later.
 */
import { createLogUpdate } from 'log-update'
import { createStyle, type Style, wantsColor } from './style.js'

export interface Progress {
  /** A new stage begins. */
  stage(name: string): void
  /** How far the stage is: only seen on a terminal. */
  tick(done: number, total: number): void
  /** Removes the line, restores the cursor. Safe to call twice. */
  clear(): void
}

class TerminalProgress implements Progress {
  readonly #update = createLogUpdate(process.stderr)
  readonly #style: Style
  #name = ''
  #active = false
  #last = 0

  constructor(style: Style) {
    this.#style = style
  }
  stage(name: string): void {
    this.#name = name
    this.#draw('')
  }
  tick(done: number, total: number): void {
    const now = performance.now()
    if (done < total && now - this.#last < 50) return
    this.#last = now
    this.#draw(` ${this.#style.dim(`${done}/${total}`)}`)
  }
  clear(): void {
    if (!this.#active) return
    this.#active = false
    this.#update.clear()
    this.#update.done()
  }
  #draw(suffix: string): void {
    this.#active = true
    this.#update(`${this.#style.cyan('…')} ${this.#name}${suffix}`)
  }
}

class PlainProgress implements Progress {
  stage(name: string): void {
    process.stderr.write(`nexus-demo: ${name}\n`)
  }
  tick(): void {}
  clear(): void {}
}

export interface Output {
  readonly style: Style
  readonly progress: Progress
  /** Lines for people on stdout; nothing in JSON mode. */
  print(...lines: readonly string[]): void
  /** The one document of JSON mode; nothing otherwise. */
  document(value: unknown): void
}

export function createOutput(json: boolean): Output {
  const style = createStyle(!json && wantsColor(process.stdout, process.env))
  const progress = process.stderr.isTTY
    ? new TerminalProgress(createStyle(wantsColor(process.stderr, process.env)))
    : new PlainProgress()
  return {
    style,
    progress,
    print(...lines) {
      if (json) return
      progress.clear()
      process.stdout.write(`${lines.join('\n')}\n`)
    },
    document(value) {
      if (!json) return
      progress.clear()
      process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
    },
  }
}
