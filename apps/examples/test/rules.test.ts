// What is promised of the examples: short, of public parts only, and printed in the documentation as they are.
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const read = (path: string): string => readFileSync(`${root}${path}`, 'utf8')

/** `exports` of every package of the workspace, by name. */
const entries = new Map<string, readonly string[]>()
for (const folder of ['kernels', ...readdirSync(`${root}packages`).map((name) => `packages/${name}`)]) {
  const { name, exports } = JSON.parse(read(`${folder}/package.json`)) as { name: string; exports: object }
  entries.set(name, Object.keys(exports))
}

describe.each(['energy-first', 'latency-bounded'])('%s', (name) => {
  const source = read(`apps/examples/src/${name}.ts`)

  it('is under 60 lines of at most 120 columns', () => {
    const lines = source.trimEnd().split('\n')
    expect(lines.length).toBeLessThan(60)
    // Not a long line for three short ones.
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(120)
  })

  it('imports public entries of @nexus packages, and nothing else', () => {
    const specifiers = [...source.matchAll(/(?:from|import)\s*\(?\s*'([^']+)'/g)].map(
      ([, specifier]) => specifier ?? '',
    )
    expect(specifiers.length).toBeGreaterThan(2)
    for (const specifier of specifiers) {
      const [, pack = '', entry = ''] = /^(@nexus\/[^/]+)(\/.*)?$/.exec(specifier) ?? []
      expect(entries.get(pack) ?? [], specifier).toContain(`.${entry}`)
      expect(entry, specifier).not.toMatch(/internal|binding/)
    }
  })

  it('is printed in docs/schedulers.md as it is', () => {
    const [, printed = ''] =
      new RegExp(`<!-- ${name} -->\\s*\`\`\`ts\\n([\\s\\S]*?)\`\`\``).exec(read('docs/schedulers.md')) ?? []
    expect(printed).toBe(source)
  })
})
