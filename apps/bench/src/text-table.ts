/** Tables for a terminal: columns as wide as their widest cell. */

/** Figures are aligned at the right; the first `left` columns are words. */
export function textTable(head: readonly string[], body: readonly (readonly string[])[], left = 0): string {
  const widths = head.map((title, i) => Math.max(title.length, ...body.map((row) => row[i]?.length ?? 0)))
  const cell = (text: string, i: number) => (i < left ? text.padEnd(widths[i] ?? 0) : text.padStart(widths[i] ?? 0))
  return [head, ...body].map((row) => row.map(cell).join('  ').trimEnd()).join('\n')
}
