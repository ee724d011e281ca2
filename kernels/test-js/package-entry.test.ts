// The built package as users load it: in processes of their own.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { loadAddon } from '../lib/binding-entry.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const addon = loadAddon().path

const run = (script: string, env: NodeJS.ProcessEnv = {}) => {
  const result = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
    cwd: root,
    encoding: 'utf8',
    timeout: 25_000,
    env: { ...process.env, NEXUS_NATIVE_PATH: addon, ...env },
  })
  return { status: result.status, signal: result.signal, out: result.stdout.trim(), err: result.stderr.trim() }
}
const require = `const { createRequire } = await import('node:module'); const require = createRequire(process.cwd() + '/x.js')\n`
const ok = (out: string) => ({ status: 0, signal: null, out, err: '' })

describe('the built package', () => {
  it('was built', () => {
    expect(existsSync(`${root}/dist/index.mjs`), 'kernels/dist is missing: build @nexus/native first').toBe(true)
  })

  it('gives the same classes and the same state to import and to require', () => {
    const script = `${require}
      const [a, b] = [await import('@nexus/native'), require('@nexus/native')]
      const [c, d] = [await import('@nexus/native/binding'), require('@nexus/native/binding')]
      const same = ['Tensor', 'Stream', 'Event', 'NexusError', 'systemInfo'].every((k) => a[k] === b[k] && a[k] !== undefined)
      const state = c.binding() === d.binding() && a.Stream.default('cpu') === b.Stream.default('cpu')
      const shared = c.bufferOf(b.Tensor.zeros([1], { device: 'cpu' })) !== undefined
      const missing = Object.keys(b).filter((k) => !(k in a)).concat(Object.keys(d).filter((k) => !(k in c)))
      console.log(same, state, shared, missing.length)`
    expect(run(script)).toEqual(ok('true true true 0'))
  })

  it('loads nothing at import', () => {
    expect(
      run(`await import('@nexus/native'); console.log('here')`, { NEXUS_NATIVE_PATH: '/nowhere/nexus.node' }),
    ).toEqual(ok('here'))
  })

  it('says what was tried and how to build when NEXUS_NATIVE_PATH points nowhere; systemInfo() has the error', () => {
    const script = `const n = await import('@nexus/native')
      const info = n.systemInfo()
      let error; try { n.Tensor.zeros([1], { device: 'cpu' }) } catch (e) { error = e }
      console.log(JSON.stringify({ info, is: error instanceof n.NativeLoadError, code: error.code, message: error.message }))`
    const { status, out } = run(script, { NEXUS_NATIVE_PATH: '/nowhere/nexus.node' })
    expect(status).toBe(0)
    const report = JSON.parse(out)
    expect(report).toMatchObject({
      is: true,
      code: 'ERR_NEXUS_NATIVE_LOAD',
      info: { machine: null, node: process.version },
    })
    for (const text of [report.message, report.info.addon.error]) {
      expect(text).toMatch(/NEXUS_NATIVE_PATH is \/nowhere\/nexus\.node: no such file/)
      expect(text).toMatch(/npx nexus-native build/)
    }
  })

  it('says so when the file is no addon', () => {
    const { out } = run(`const n = await import('@nexus/native'); console.log(n.systemInfo().addon.error)`, {
      NEXUS_NATIVE_PATH: `${root}/package.json`,
    })
    expect(out).toMatch(/package\.json is not the addon of this version/)
  })
})

describe('nexus-native', () => {
  const cli = (args: string[], env: NodeJS.ProcessEnv = {}) =>
    spawnSync(process.execPath, [`${root}/bin/nexus-native.js`, ...args], {
      encoding: 'utf8',
      env: { ...process.env, NEXUS_NATIVE_PATH: addon, ...env },
    })

  it('info --json prints systemInfo()', () => {
    const out = execFileSync(process.execPath, [`${root}/bin/nexus-native.js`, 'info', '--json'], {
      encoding: 'utf8',
      env: { ...process.env, NEXUS_NATIVE_PATH: addon },
    })
    expect(JSON.parse(out)).toMatchObject({
      node: process.version,
      addon: { path: addon, foundBy: 'NEXUS_NATIVE_PATH' },
    })
    expect(cli(['info']).stdout).toMatch(/^cpu {7}\S/m)
  })

  it('info without an addon says why and fails', () => {
    const { status, stdout } = cli(['info'], { NEXUS_NATIVE_PATH: '/nowhere/nexus.node' })
    expect(status).toBe(1)
    expect(stdout).toMatch(/no such file/)
  })

  it('build without cmake is one clear line', () => {
    const { status, stderr } = cli(['build'], { PATH: '/nowhere' })
    expect(status).toBe(1)
    expect(stderr).toMatch(/^nexus-native: cmake was not found[^\n]*\n$/)
  })

  it('has help, and refuses what it does not know', () => {
    expect(cli(['--help'])).toMatchObject({ status: 0, stdout: expect.stringMatching(/^usage: nexus-native/) })
    expect(cli(['biuld'])).toMatchObject({ status: 2, stderr: expect.stringMatching(/unknown command biuld/) })
    expect(cli([])).toMatchObject({ status: 2 })
  })
})
