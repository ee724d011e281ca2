// The one plain closing line that every test run here ends with: 'N passed, M failed, K skipped'.

/** @typedef {{ passed: number, failed: number, skipped: number }} Totals */

/** @param {Totals} totals @returns {string} */
export function closingLine({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`
}

/** The last closing line in a text, or null. @param {string} text @returns {Totals | null} */
export function parseClosingLine(text) {
  const last = [...text.matchAll(/^(\d+) passed, (\d+) failed, (\d+) skipped\s*$/gm)].at(-1)
  return last ? { passed: Number(last[1]), failed: Number(last[2]), skipped: Number(last[3]) } : null
}

/** @param {readonly Totals[]} all @returns {Totals} */
export function sum(all) {
  const total = { passed: 0, failed: 0, skipped: 0 }
  for (const { passed, failed, skipped } of all) {
    total.passed += passed
    total.failed += failed
    total.skipped += skipped
  }
  return total
}
