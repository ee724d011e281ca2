/**
 * Where `nexus-demo top` shows itself: the alternate screen of a terminal, drawn over in place; blocks of lines in a pipe or file; or one JSON object a
 * line. The terminal is given back however the command ends, by `leave()` and, should that not be reached, as the process exits.
 */
import { once } from 'node:events'
import type { Style } from './style.js'
import type { TopSnapshot } from './top-snapshot.js'
import { topBlock, topScreen } from './top-view.js'

export interface TopDisplay {
  /** Resolves when there is room for more, or the signal fires. */
  show(snapshot: TopSnapshot, signal: AbortSignal): Promise<void>
  /** Aborted when somebody asks for the end. */
  readonly quit: AbortSignal
  /** Gives the terminal back. Twice is fine. */
  leave(): void
}

type Out = NodeJS.WriteStream
type In = NodeJS.ReadStream

const csi = '\u001b['
const enterScreen = `${csi}?1049h${csi}?25l${csi}2J`
const leaveScreen = `${csi}?25h${csi}?1049l`
/** Draws a frame without showing it half done, where the terminal knows how. */
const [beginFrame, endFrame] = [`${csi}?2026h`, `${csi}?2026l`]

export class ScreenDisplay implements TopDisplay {
  readonly #quit = new AbortController()
  readonly #style: Style
  readonly #out: Out
  readonly #in: In
  readonly #interrupt: () => void
  #last: TopSnapshot | null = null
  #entered = false

  /** @param interrupt - called for Ctrl-C, which a terminal in raw mode hands over as a character */
  constructor(style: Style, out: Out, input: In, interrupt: () => void) {
    this.#style = style
    this.#out = out
    this.#in = input
    this.#interrupt = interrupt
  }

  get quit(): AbortSignal {
    return this.#quit.signal
  }

  async show(snapshot: TopSnapshot): Promise<void> {
    this.#last = snapshot
    if (!this.#entered) this.#enter()
    this.#draw(false)
  }

  leave(): void {
    if (!this.#entered) return
    this.#entered = false
    this.#out.off('resize', this.#onResize)
    process.off('exit', this.#onExit)
    if (this.#in.isTTY) {
      this.#in.off('data', this.#onKeys)
      this.#in.setRawMode(false)
      this.#in.pause()
    }
    this.#out.write(leaveScreen)
  }

  #enter(): void {
    this.#entered = true
    process.on('exit', this.#onExit)
    this.#out.on('resize', this.#onResize)
    this.#out.write(enterScreen)
    if (this.#in.isTTY) {
      this.#in.setRawMode(true)
      this.#in.on('data', this.#onKeys)
      this.#in.resume()
    }
  }

  readonly #onExit = (): void => this.leave()

  readonly #onResize = (): void => this.#draw(true)

  readonly #onKeys = (data: Buffer): void => {
    for (const key of data.toString('latin1')) {
      if (key === 'q' || key === 'Q') this.#quit.abort()
      if (key === '\u0003') this.#interrupt()
    }
  }

  #draw(cleared: boolean): void {
    if (this.#last === null || !this.#entered) return
    const size = { columns: this.#out.columns || 80, rows: this.#out.rows || 24 }
    const lines = topScreen(this.#last, size, this.#style)
    // Each line is written where it belongs and its rest erased: nothing scrolls, and nothing flickers.
    const drawn = lines.map((line, row) => `${csi}${row + 1};1H${line}${csi}K`).join('')
    const clear = cleared ? `${csi}2J` : ''
    this.#out.write(`${beginFrame}${clear}${drawn}${csi}J${endFrame}`)
  }
}

export class LineDisplay implements TopDisplay {
  readonly quit = new AbortController().signal
  readonly #out: Out
  readonly #lines: (snapshot: TopSnapshot) => string

  constructor(out: Out, lines: (snapshot: TopSnapshot) => string) {
    this.#out = out
    this.#lines = lines
  }

  async show(snapshot: TopSnapshot, signal: AbortSignal): Promise<void> {
    // A reader that is slower than the views holds the views up, and not the memory.
    if (this.#out.write(this.#lines(snapshot))) return
    await once(this.#out, 'drain', { signal }).catch((error) => {
      if (!signal.aborted) throw error
    })
  }

  leave(): void {}
}

export const blockText = (style: Style) => (snapshot: TopSnapshot) => `${topBlock(snapshot, style).join('\n')}\n\n`
export const jsonText = (snapshot: TopSnapshot): string => `${JSON.stringify(snapshot)}\n`
