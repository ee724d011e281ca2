/** Numbers, tables and bars as plain text. Colour is added around whole cells by a paint function, after the widths are known. */
import type { Paint } from './style.js'

export interface Column {
  readonly title: string
  /** @default 'right' */
  readonly align?: 'left' | 'right'
}
export interface Cell {
  readonly text: string
  readonly paint?: Paint
}

/** Width in terminal cells of the text used here: one cell a code point (no wide characters, no escapes). */
const width = (text: string): number => [...text].length

function pad(text: string, to: number, align: 'left' | 'right'): string {
  const space = ' '.repeat(Math.max(0, to - width(text)))
  return align === 'left' ? text + space : space + text
}

/** Lines of a table: the titles, then the rows, columns two spaces apart, no trailing space. */
export function table(
  columns: readonly Column[],
  rows: readonly (readonly (string | Cell)[])[],
  titlePaint: Paint = (text) => text,
): string[] {
  const cells = rows.map((row) => row.map((cell): Cell => (typeof cell === 'string' ? { text: cell } : cell)))
  for (const row of cells) {
    if (row.length !== columns.length) throw new RangeError(`rows: expected ${columns.length} cells, got ${row.length}`)
  }
  const widths = columns.map((column, i) =>
    Math.max(width(column.title), ...cells.map((row) => width(row[i]?.text ?? ''))),
  )
  const line = (row: readonly Cell[]): string =>
    row
      .map((cell, i) => {
        const align = columns[i]?.align ?? 'right'
        // The last column's padding would only be trailing space.
        const padded = i === row.length - 1 && align === 'left' ? cell.text : pad(cell.text, widths[i] ?? 0, align)
        return cell.paint ? cell.paint(padded) : padded
      })
      .join('  ')
      .trimEnd()
  return [line(columns.map((column) => ({ text: column.title, paint: titlePaint }))), ...cells.map(line)]
}

const eighths = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉']

/** A bar of `fraction` (clamped to 0…1) of `cells` characters, in steps of an eighth; anything above 0 is visible. */
export function bar(fraction: number, cells: number): string {
  const clamped = Math.min(1, Math.max(0, Number.isFinite(fraction) ? fraction : 0))
  let steps = Math.round(clamped * cells * 8)
  if (clamped > 0 && steps === 0) steps = 1
  return '█'.repeat(steps >> 3) + (eighths[steps & 7] ?? '')
}

/** Milliseconds with three significant digits and no exponent: 0.0123, 1.23, 12.3, 1234. */
export function milliseconds(ms: number): string {
  if (!Number.isFinite(ms)) return 'n/a'
  const magnitude = ms === 0 ? 0 : Math.floor(Math.log10(Math.abs(ms)))
  return ms.toFixed(Math.min(4, Math.max(0, 2 - magnitude)))
}

/** An integer in groups of three: 1,234,567. */
export function grouped(value: number): string {
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ',')
}

/** Bytes in binary units: 512 B, 1.5 GiB. */
export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  let scaled = value
  while (scaled >= 1024 && unit < units.length - 1) {
    scaled /= 1024
    unit++
  }
  return `${unit === 0 ? scaled : scaled.toFixed(scaled < 10 ? 1 : 0)} ${units[unit]}`
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`
}

/** A relative error as 1.2e-6, or 0. */
export function scientific(value: number): string {
  return value === 0 ? '0' : value.toExponential(1)
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle]
  if (upper === undefined) return Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2
}
