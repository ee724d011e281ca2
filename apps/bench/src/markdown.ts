/** The little Markdown that result pages need. */

const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`

/** The first `left` columns are words, the others figures. */
export function table(head: readonly string[], body: readonly (readonly string[])[], left = 1): string {
  return [line(head), line(head.map((_, i) => (i < left ? '---' : '---:'))), ...body.map(line)].join('\n')
}

/** A figure that may be missing. */
export const figure = (value: number | null | undefined, digits: number): string =>
  value === null || value === undefined || !Number.isFinite(value) ? 'n/a' : value.toFixed(digits)

/** `1.8 %`; the sign is the caller's words. */
export const percent = (part: number, digits = 1): string => `${(100 * part).toFixed(digits)} %`

/** How much a ratio is off 1: in percent, or in times where percent are hard to read. */
export const change = (ratio: number): string =>
  ratio >= 2 ? `${ratio.toFixed(1)} times` : percent(Math.abs(ratio - 1))
