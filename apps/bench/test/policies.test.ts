import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { policies } from '@nexus/slices'
import { type SimulationResult, simulate, syntheticTrace, type TraceKind } from '@nexus/slices/simulator'
import { describe, expect, test } from 'vitest'
import { resultsFolder, tracesFolder } from '../src/paths.js'
import { readTraces, traceOf } from '../src/recording/trace-file.js'
import { type PoliciesResult, type PolicyRow, policiesBench, rowsOf } from '../src/scheduling/policies-bench.js'
import { policyTables } from '../src/sections/policies.js'

const result = JSON.parse(readFileSync(join(resultsFolder, 'policies.json'), 'utf8')) as PoliciesResult
const rows = (recorded: boolean) => result.tables.filter((t) => t.recorded === recorded).flatMap((t) => t.rows)

/** Simulated again: floating point differs between machines at most in the last digits of a logarithm. */
const same = (row: PolicyRow | undefined, { makespanUs }: SimulationResult) =>
  expect(row?.firstMs).toBeCloseTo(makespanUs / 1e3, 3)

describe('policies.json', () => {
  test('has 20 held-out seeds, and every recorded trace', () => {
    expect(new Set(result.seeds).size).toBeGreaterThanOrEqual(20)
    const names = [...new Set(rows(true).map(({ trace }) => trace))]
    expect(names).toEqual(readTraces(tracesFolder).map(({ name }) => name))
    for (const table of result.tables) expect(table.runs).toBeGreaterThanOrEqual(20)
  })
  test('is of this code: recorded traces', () => {
    for (const file of readTraces(tracesFolder)) {
      const row = rows(true).find(({ trace, policy }) => trace === file.name && policy === 'adaptive')
      same(row, simulate(policies.adaptive(), traceOf(file), { oracle: false }))
    }
  })
  test('is of this code: synthetic traces', () => {
    const [seed = 0] = result.seeds
    for (const row of (result.tables[0]?.rows ?? []).filter(({ policy }) => policy === 'adaptive')) {
      const kind = row.trace as TraceKind
      same(row, simulate(policies.adaptive(), syntheticTrace({ kind, seed }), { oracle: false }))
    }
  })
  test('regret is what the makespans say', () => {
    for (const { makespanMs, oracleMs, regret } of [...rows(false), ...rows(true)]) {
      expect(regret.mean).toBeGreaterThanOrEqual(0)
      expect(makespanMs.mean).toBeGreaterThanOrEqual(oracleMs.mean)
    }
  })
})

describe('the table', () => {
  const run = (makespans: readonly number[]): SimulationResult[] =>
    ['static', 'dynamic', 'proportional', 'adaptive'].map((policy, p) => ({
      policy,
      trace: 'made up',
      steps: 500,
      makespanUs: makespans[p] ?? 0,
      oracleUs: 1000,
      regret: (makespans[p] ?? 0) / 1000 - 1,
      switches: p,
      movedSms: 8 * p,
      migrations: 0,
    }))
  const made = rowsOf('made up', [run([1100, 1200, 2000, 1300]), run([1100, 1300, 2200, 1300])])

  test('pairs by seed, with the best of the trace and per 1000 steps', () => {
    const [fixed, dynamic, proportional, adaptive] = made
    expect(fixed?.toBest).toEqual({ mean: 1, halfWidth: 0 })
    expect(fixed?.toProportional.mean).toBeCloseTo((0.55 + 0.5) / 2, 12)
    expect(dynamic?.toBest.mean).toBeCloseTo(1250 / 1100, 12)
    expect(proportional?.makespanMs.mean).toBeCloseTo(2.1, 12)
    expect(adaptive?.movedSms).toEqual({ mean: 48, halfWidth: 0 })
    expect(adaptive?.firstMs).toBeCloseTo(1.3, 12)
  })
  test('names who is behind, by the near end of the interval', () => {
    const table = { title: 'T', recorded: false, numExperts: '4', runs: 2, rows: made }
    const text = policyTables({ ...result, tables: [table] })
    expect(text).toContain('made up: `static` is best, 10.0 % over the oracle; `adaptive` takes 18.2 % longer.')
    expect(policyTables({ ...result, tables: [{ ...table, rows: made.slice(0, 1) }] })).toContain(
      'no policy is more than 1 % behind',
    )
  })
  test('is made without recordings too', async () => {
    const said: string[] = []
    const small = await policiesBench({ seeds: [1], traces: [], recordings: 1, onProgress: (line) => said.push(line) })
    expect(small.tables.map(({ recorded }) => recorded)).toEqual([false, false, false])
    expect(small.tables[0]?.rows[0]?.regret.halfWidth).toBeNull()
    expect(said).toHaveLength(14)
  }, 120_000)
})
