// The documented commands: the examples as programs, from whatever folder they are called.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, expect, it as plain } from 'vitest'
import { needs } from '../../../tests/tags.js'
import { noFakeGpu } from '../src/fake-gpu.js'
import { missingAddon } from './support/machine.js'

// The programs are put together by tsup, which a bundle does not carry.
const { test: it } = needs('compiler')
const program = fileURLToPath(new URL('../src/run.mjs', import.meta.url))
const elsewhere = mkdtempSync(join(tmpdir(), 'nexus-examples-'))
afterAll(() => rmSync(elsewhere, { recursive: true, force: true }))
const run = (...words: string[]) =>
  spawnSync(process.execPath, [program, ...words], { encoding: 'utf8', cwd: elsewhere })

const here = (missing: unknown) => (missing ? plain.skip : it)

here(missingAddon ?? noFakeGpu)('energy-first tries its layouts and chooses one', () => {
  const { stdout, stderr, status } = run('energy-first', '--device', 'cpu')
  expect(stderr).toBe('')
  expect(stdout.match(/^ +[0246] idle +[\d.]+ ms {2}/gm)).toHaveLength(4)
  expect(stdout.match(/<- chosen$/gm)).toHaveLength(1)
  expect(stdout).toMatch(/^From now on: CPU: hot=/m)
  expect(status).toBe(0)
})

here(missingAddon)('latency-bounded keeps to what it is given', () => {
  const { stdout, stderr, status } = run('latency-bounded', '--device', 'cpu', '--bound', '100000')
  expect(stderr).toBe('')
  expect(stdout.match(/^ +1 SMs {2}p99 +[\d.]+ ms {2}prefill \d+ steps\/s$/gm)).toHaveLength(20)
  expect(status).toBe(0)
})

it('a wrong command line says how it is used, and nothing is left in the folder', () => {
  const { stdout, stderr, status } = run('latency-first')
  expect(stderr).toMatch(/^usage: /)
  expect(stdout).toBe('')
  expect(status).toBe(2)
  expect(readdirSync(elsewhere)).toEqual([])
})
