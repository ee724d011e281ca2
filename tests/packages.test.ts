// The packages as a stranger meets them: packed, served by a registry on loopback, installed in an empty folder.
import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Packed, packAll, problemsOf } from '../scripts/pack.mjs'
import { npmRegistry, type Registry, serveRegistry } from './registry.js'
import { needs } from './tags.js'

const execute = promisify(execFile)
const MINUTE = 60_000

needs('registry').describe('packed packages', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'nexus-packages-'))
  let packed: Packed[] = []
  let registry: Registry

  beforeAll(async () => {
    packed = await packAll(join(scratch, 'tarballs'))
    registry = await serveRegistry(join(scratch, 'tarballs'), npmRegistry())
  }, 5 * MINUTE)

  afterAll(() => {
    registry?.close()
    rmSync(scratch, { recursive: true, force: true })
  })

  // An empty folder, with npm set to our registry; nothing of the checkout reaches it.
  function emptyFolder(name: string) {
    const cwd = join(scratch, name)
    mkdirSync(cwd)
    writeFileSync(join(cwd, 'package.json'), '{ "private": true }')
    const env: NodeJS.ProcessEnv = {}
    for (const [key, value] of Object.entries(process.env)) {
      if (!/^(npm_|NODE_|VITEST|NEXUS_NATIVE_PATH$|PNPM)/i.test(key)) env[key] = value
    }
    env.npm_config_registry = registry.url
    env.npm_config_cache = join(scratch, 'npm-cache')
    env.npm_config_update_notifier = 'false'
    env.npm_config_loglevel = 'error'
    env.NO_COLOR = '1'
    const run = (command: string, ...args: string[]) => execute(command, args, { cwd, env, maxBuffer: 1 << 26 })
    return {
      run,
      install: (...names: string[]) => run('npm', 'install', '--no-audit', '--no-fund', ...names),
      node: (code: string, type: 'module' | 'commonjs') => run(process.execPath, `--input-type=${type}`, '-e', code),
      installed: () => installedIn(join(cwd, 'node_modules')),
      nativeFiles: () =>
        readdirSync(join(cwd, 'node_modules'), { recursive: true, encoding: 'utf8' }).filter((f) =>
          f.endsWith('.node'),
        ),
    }
  }

  test(
    'publint and attw find nothing in any of them',
    async () => {
      expect(packed.map(({ name }) => name)).toEqual(
        expect.arrayContaining([
          '@nexus/native',
          '@nexus/router-kernels',
          '@nexus/profiler',
          '@nexus/core',
          'nexus-demo',
        ]),
      )
      for (const each of packed) expect(await problemsOf(each), each.name).toEqual([])
    },
    5 * MINUTE,
  )

  test(
    '@nexus/profiler brings one package and no native file',
    async () => {
      const folder = emptyFolder('profiler')
      await folder.install('@nexus/profiler')
      expect(folder.installed()).toEqual(['@nexus/profiler'])
      expect(folder.nativeFiles()).toEqual([])
    },
    MINUTE,
  )

  test(
    '@nexus/router-kernels brings the native package and not the layer',
    async () => {
      const folder = emptyFolder('router-kernels')
      await folder.install('@nexus/router-kernels')
      const names = folder.installed()
      expect(names).toEqual(expect.arrayContaining(['@nexus/native', '@nexus/router-kernels']))
      expect(names.filter((name) => /core|profiler|demo|bench|cmake-js/.test(name))).toEqual([])
      const { stdout } = await folder.node(
        "import { systemInfo } from '@nexus/native'; console.log(JSON.stringify(systemInfo().addon))",
        'module',
      )
      expect(JSON.parse(stdout)).toMatchObject({ foundBy: 'package', path: expect.stringContaining('router-kernels') })
    },
    2 * MINUTE,
  )

  test(
    'every entry point can be imported and required, with the same names',
    async () => {
      const libraries = packed.filter(({ manifest }) => manifest.exports)
      const folder = emptyFolder('libraries')
      await folder.install(...libraries.map(({ name }) => name))
      for (const { name, manifest } of libraries) {
        for (const subpath of Object.keys(manifest.exports).filter((key) => !key.endsWith('.json'))) {
          const entry = JSON.stringify(name + subpath.slice(1))
          const names = "Object.keys(m).filter((k) => k !== 'default' && k !== 'module.exports').sort().join()"
          const imported = await folder.node(`import * as m from ${entry}; console.log(${names})`, 'module')
          const required = await folder.node(`const m = require(${entry}); console.log(${names})`, 'commonjs')
          expect(imported.stdout.trim(), entry).not.toBe('')
          expect(required.stdout, entry).toBe(imported.stdout)
        }
      }
    },
    3 * MINUTE,
  )

  test(
    'npx nexus-demo runs in an empty folder and proves its output',
    async () => {
      const folder = emptyFolder('demo')
      const help = await folder.run('npx', '--yes', 'nexus-demo', '--help')
      expect(help.stdout).toContain('nexus-demo')
      const { stdout } = await folder.run('npx', '--yes', 'nexus-demo', '--json', '--device', 'cpu')
      expect(JSON.parse(stdout)).toMatchObject({ ok: true, device: 'cpu', proof: { recorded: true, ok: true } })
    },
    5 * MINUTE,
  )
})

// Names of the packages in a node_modules folder, whatever the depth.
function installedIn(folder: string): string[] {
  const names: string[] = []
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.name.startsWith('.') || !entry.isDirectory()) continue
    const inside = entry.name.startsWith('@')
      ? readdirSync(join(folder, entry.name)).map((name) => `${entry.name}/${name}`)
      : [entry.name]
    names.push(...inside)
  }
  return names.sort()
}
