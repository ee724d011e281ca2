/** Edits (insert, delete, replace, swap of neighbours) that turn one word into another: Damerau-Levenshtein, restricted. */
export function distance(a: string, b: string): number {
  let previous: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      let best = Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + same)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, (previous[j - 2] ?? 0) + 1)
      next[j] = best
    }
    previous = row
    row = next
  }
  return row[b.length] ?? 0
}

/** The known word that `word` was most likely meant to be, or `null` when none is near. */
export function nearest(word: string, known: readonly string[]): string | null {
  let best: string | null = null
  let least = Math.max(2, Math.floor(word.length / 2)) + 1
  for (const candidate of known) {
    const d = candidate.startsWith(word) && word.length > 1 ? 1 : distance(word, candidate)
    if (d < least) {
      least = d
      best = candidate
    }
  }
  return best
}
