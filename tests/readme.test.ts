// What the README says is true: its example runs exactly as printed, its commands and the files it links to exist.
import { execFileSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { root } from '../scripts/child.mjs'
import { packageFolders } from '../scripts/setup.mjs'

const readme = readFileSync(join(root, 'README.md'), 'utf8')
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))

/** The fenced block that follows `<!-- example -->`. */
function example(): { language: string; code: string } {
  const [, language = '', code = ''] = /<!-- example -->\s*```(js|mjs|ts)\n([\s\S]*?)```/.exec(readme) ?? []
  return { language, code }
}

// A folder inside the workspace in which the workspace's packages resolve as if they were installed.
function projectWithPackages(): string {
  const folder = mkdtempSync(join(root, 'tests', 'build-readme-'))
  mkdirSync(join(folder, 'node_modules', '@nexus'), { recursive: true })
  for (const each of packageFolders().filter((each) => !each.startsWith('apps/'))) {
    const { name } = JSON.parse(readFileSync(join(root, each, 'package.json'), 'utf8'))
    symlinkSync(join(root, each), join(folder, 'node_modules', name))
  }
  return folder
}

describe('README', () => {
  test('has an example of at most ten lines', () => {
    const lines = example()
      .code.split('\n')
      .filter((line) => line.trim() !== '')
    expect(lines.length).toBeGreaterThan(0)
    expect(lines.length).toBeLessThanOrEqual(10)
  })

  test('the example runs as printed', async () => {
    const { language, code } = example()
    const folder = projectWithPackages()
    try {
      writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
      writeFileSync(join(folder, 'example.mjs'), language === 'ts' ? await withoutTypes(code) : code)
      const output = execFileSync(process.execPath, ['example.mjs'], { cwd: folder, encoding: 'utf8', timeout: 60_000 })
      expect(output.trim()).not.toBe('')
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }, 90_000)

  test('every npm command that it names exists', () => {
    const named = [...readme.matchAll(/npm (?:run (?:--silent )?([\w:-]+)|(test))\b/g)].map((m) => m[1] ?? m[2])
    expect(named).toEqual(expect.arrayContaining(['demo', 'test']))
    for (const name of named) expect(Object.keys(manifest.scripts), `npm run ${name}`).toContain(name)
  })

  test('the layout that it draws is the layout there is', () => {
    for (const folder of ['packages', 'apps', 'kernels', 'docs', '.changeset']) {
      expect(readdirSync(root)).toContain(folder)
    }
    for (const [, name] of readme.matchAll(/`@nexus\/([\w-]+)`/g)) {
      const folder = name === 'native' ? 'kernels' : `packages/${name}`
      expect(existsSync(join(root, folder, 'package.json')), `@nexus/${name}`).toBe(true)
    }
  })
})

// A TypeScript example as Node 20 can run it: types taken out, `using` written out.
async function withoutTypes(code: string): Promise<string> {
  const ts = (await import('typescript')).default
  return ts.transpile(code, { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext })
}
