// Tests that need more than the built workspace say so by name, and the bundle, which runs on a machine without network
// or compiler, leaves them out and lists them (NEXUS_BUNDLE=1; see scripts/bundle.sh and scripts/closing-line.ts).
import { describe, test } from 'vitest'
import { LEFT_OUT } from './left-out.js'

/** What a test may need beyond the built workspace. */
export type Need = 'registry' | 'compiler'

const WHAT: Readonly<Record<Need, string>> = {
  registry: 'needs a package registry',
  compiler: 'needs a compiler and build tools',
}

/**
 * `test` and `describe` for what needs a registry or a compiler: `needs('registry').test('installs', async () => …)`.
 * Under NEXUS_BUNDLE=1 it is skipped, with the reason in its name.
 */
export function needs(...list: readonly Need[]): {
  test: (name: string, body: () => void | Promise<void>, timeoutMs?: number) => void
  describe: (name: string, body: () => void) => void
} {
  if (process.env.NEXUS_BUNDLE !== '1') return { test, describe }
  const reason = `${LEFT_OUT} ${list.map((need) => WHAT[need]).join(', ')})`
  return {
    test: (name, body, timeoutMs) => test.skip(`${name} ${reason}`, body, timeoutMs),
    describe: (name, body) => describe.skip(`${name} ${reason}`, body),
  }
}
