/** Medians: one step that was disturbed says nothing of a strategy. */

/** The middle of some figures; NaN of none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const low = sorted[(sorted.length - 1) >> 1] ?? Number.NaN
  return (low + (sorted[sorted.length >> 1] ?? Number.NaN)) / 2
}
