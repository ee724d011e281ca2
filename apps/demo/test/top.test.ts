/** `nexus-demo top` without a device: its command line, what it makes of a layer's statistics, and its views at any size of a terminal. */
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { parseCommand } from '../src/arguments.js'
import { createStyle } from '../src/style.js'
import { type Moment, type TopSnapshot, topSnapshot } from '../src/top-snapshot.js'
import { topBlock, topScreen } from '../src/top-view.js'
import { preference } from '../src/top-workload.js'

const plain = createStyle(false)
const colours = createStyle(true)
const esc = String.fromCharCode(27)
const withoutColours = (text: string) => text.replace(new RegExp(`${esc}\\[\\d+m`, 'g'), '')

const temperatures = ['hot', 'warm', 'cold'] as const

/** A snapshot with everything on. */
function snapshotOf(numExperts = 16, more: Partial<TopSnapshot> = {}): TopSnapshot {
  const weights = Array.from({ length: numExperts }, (_, e) => 1 / (e + 1))
  const total = weights.reduce((sum, w) => sum + w, 0)
  const tier = (e: number) => (e < 2 ? 0 : e < numExperts / 2 ? 1 : 2)
  return {
    schema: 'nexus-demo/top/1',
    elapsedMs: 83_400,
    device: 'cuda:0',
    dtype: 'bf16',
    numExperts,
    topK: 2,
    strategy: {
      name: 'tiered',
      reason: 'tiered: 12 % sooner by the last window',
      changes: 1,
      failures: 0,
      lastFailure: null,
    },
    rate: { stepsPerSecond: 12_345.6, tokensPerSecond: 9_876_543 },
    steps: 1_000_000,
    tokens: 800_000_000,
    stepMs: 0.0812,
    experts: {
      windowSteps: 512,
      loadImbalance: 4.73,
      normalizedEntropy: 0.812,
      drift: 0.034,
      forecast: 'trend',
      list: weights.map((w, e) => ({
        expert: e,
        share: w / total,
        temperature: temperatures[tier(e)] ?? 'cold',
        slice: temperatures[tier(e)] ?? null,
        stream: e % 4,
      })),
    },
    slices: {
      inUse: true,
      enforcement: 'hardware',
      reason: 'green contexts',
      switches: 3,
      migrations: 41,
      list: temperatures.map((name, i) => ({
        name,
        sms: [64, 44, 24][i] ?? 0,
        experts: 2 + i,
        share: 0.5 / (i + 1),
        enforcement: 'hardware',
        reason: 'a green context',
      })),
    },
    streams: {
      inUse: false,
      assignment: 'longest-first',
      list: [0.3, 0.25, 0.25, 0.2].map((share) => ({ experts: 4, share })),
    },
    graphs: {
      graphs: 3,
      bytes: 1_234_567,
      hits: 995,
      misses: 5,
      captures: 3,
      captureMs: 4.2,
      evictions: 0,
      fallbacks: 0,
      lastFallback: null,
      paddingWaste: 0.031,
    },
    power: { watts: 412.34, source: 'energy counter', reason: null, tokensPerJoule: 23_456, gpuUtilisation: 0.97 },
    ...more,
  }
}

/** One with everything off or not known. */
const nothing = snapshotOf(16, {
  rate: null,
  stepMs: null,
  experts: null,
  slices: null,
  streams: null,
  graphs: null,
  power: { watts: null, source: null, reason: 'no powercap driver', tokensPerJoule: null, gpuUtilisation: null },
})

describe('the screen', () => {
  test.each([
    [80, 24, 16],
    [40, 10, 16],
    [200, 60, 16],
    [200, 60, 256],
    [80, 24, 128],
    [20, 5, 16],
    [1, 1, 16],
    [500, 200, 1024],
  ])(
    '%i × %i with %i experts: no line is longer or one too many, with colours as without',
    (columns, rows, experts) => {
      for (const snapshot of [snapshotOf(experts), nothing]) {
        const lines = topScreen(snapshot, { columns, rows }, plain)
        expect(lines.length).toBeLessThanOrEqual(rows)
        for (const line of lines) expect([...line].length).toBeLessThanOrEqual(columns)
        expect(topScreen(snapshot, { columns, rows }, colours).map(withoutColours)).toEqual(lines)
      }
    },
  )

  test('80 × 24 shows all there is', () => {
    const text = topScreen(snapshotOf(10), { columns: 80, rows: 24 }, plain).join('\n')
    expect(text).toMatch(/^nexus-demo top {2}cuda:0 bf16 {2}01:23 {2}\(q quits\)$/m)
    expect(text).toMatch(/^rate {5}12,346 steps\/s {2}9,876,543 tokens\/s {2}0\.0812 ms a step$/m)
    expect(text).toMatch(/^plan {5}tiered: 12 % sooner by the last window$/m)
    expect(text).toMatch(/^slices {3}in use {2}3 switches {2}41 migrations {2}hardware: green contexts$/m)
    expect(text).toMatch(/^ {9}hot {3}64 SMs {4}2 experts {3}50\.0 % {2}hardware$/m)
    expect(text).toMatch(/^streams {2}assigned, not in use {2}longest-first {2}load 30% 25% 25% 20%$/m)
    expect(text).toMatch(/^graphs {3}3 held, 1\.2 MiB {2}hits 99\.5 % {2}padding 3\.1 % {2}3 captures$/m)
    expect(text).toMatch(/^power {4}412\.3 W \(energy counter\) {2}23,456 tokens\/J {2}busy 97\.0 %$/m)
    expect(text).toMatch(
      /^experts {2}imbalance 4\.73 {2}entropy 0\.81 {2}drift 0\.03 {2}forecast trend {2}window 512$/m,
    )
    for (let e = 0; e < 10; e++) expect(text).toMatch(new RegExp(`^ {2}${e} +[\\d.]+ % (hot|warm|cold) .*[█▏]`, 'm'))
  })

  test('40 × 10 keeps every section and the busiest experts, and says what is missing', () => {
    const lines = topScreen(snapshotOf(16), { columns: 40, rows: 10 }, plain)
    for (const label of ['rate', 'plan', 'slices', 'streams', 'graphs', 'power', 'experts'])
      expect(lines.some((line) => line.startsWith(label))).toBe(true)
    expect(lines[7]).toMatch(/^experts {2}busiest 2 of 16 /)
    expect(lines[8]).toMatch(/^ {2}0 +29\.6 % hot/)
    expect(lines[9]).toMatch(/^ {2}1 +14\.8 % hot/)
    expect(lines).toHaveLength(10)
  })

  test('200 × 60 puts experts beside each other only where they have to be', () => {
    const rowsOf = (experts: number) =>
      topScreen(snapshotOf(experts), { columns: 200, rows: 60 }, plain).filter((line) => /^ *\d+ +[\d.]+ %/.test(line))
    expect(rowsOf(16)).toHaveLength(16)
    expect(rowsOf(128)).toHaveLength(43)
    expect(rowsOf(128)[0]).toMatch(/^ {2}0 .* {2} 43 .* {2} 86 /)
  })

  test('what is not known is a dash with the reason, never a 0', () => {
    const text = topScreen(nothing, { columns: 120, rows: 24 }, plain).join('\n')
    expect(text).toMatch(/– steps\/s \(the first interval is not over\) {2}– ms a step/)
    expect(text).toMatch(/^power {4}– \(no powercap driver\)$/m)
    expect(text).toMatch(/^slices {3}– \(off\)$/m)
    expect(text).toMatch(/^experts {2}– \(no profiler\)$/m)
    expect(text).not.toMatch(/\b0(\.0+)? (W|steps|ms|%)/)
  })

  test('failures and fallbacks are told first', () => {
    const text = topScreen(
      snapshotOf(4, {
        strategy: { name: 'fused', reason: 'fused kept', changes: 0, failures: 2, lastFailure: 'no memory' },
        graphs: {
          ...(snapshotOf().graphs as NonNullable<TopSnapshot['graphs']>),
          fallbacks: 7,
          lastFallback: 'over budget',
        },
      }),
      { columns: 120, rows: 30 },
      plain,
    ).join('\n')
    expect(text).toMatch(/^plan {5}2 failures \(no memory\) {2}fused kept$/m)
    expect(text).toMatch(/7 fallbacks \(over budget\)/)
  })
})

test('the block has every expert and every figure, whole', () => {
  const text = topBlock(snapshotOf(16), plain).join('\n')
  expect(text).toMatch(/^\[83\.4 s\] cuda:0 bf16 {2}12,346 steps\/s/)
  expect(text.match(/\d+ +[\d.]+ % (hot|warm|cold)/g)).toHaveLength(16)
  expect(text).not.toContain('…')
  expect(text).not.toContain(esc)
})

test('an expert that is preferred has neighbours that are preferred too, and the preference goes all the way round', () => {
  const at = (phase: number) => Array.from({ length: 16 }, (_, e) => preference(e, 16, phase))
  const hottest = (phase: number) => at(phase).indexOf(Math.max(...at(phase)))
  expect([0, 15, 30, 45].map(hottest)).toEqual([0, 4, 8, 12])
  expect(at(0)[1]).toBe(at(0)[15])
  expect(Math.min(...at(0))).toBe(at(0)[8])
  // The bits of a float64 are as near as phases of a circle get.
  for (const [e, value] of at(60).entries()) expect(value).toBeCloseTo(at(0)[e] ?? Number.NaN, 12)
})

describe('the snapshot', () => {
  const sample = { timeMs: 0, joules: null, watts: null, resets: 0, ticks: 0, gpuUtilisation: null }
  const moment = (timeMs: number, steps: number, power: object = {}, unknown: object = {}): Moment =>
    ({
      timeMs,
      stats: {
        device: 'cpu',
        dtype: 'f32',
        steps,
        tokens: 10 * steps,
        expertCounts: [0, 0],
        times: null,
        strategy: null,
        profiler: null,
        slices: null,
        streams: null,
        graphs: null,
        energy: null,
      },
      sample: { ...sample, timeMs, ...power },
      unknown,
    }) as unknown as Moment
  const of = { startMs: 1000, topK: 2 }

  test('rates are those of the interval', () => {
    expect(topSnapshot(of, moment(2000, 500), null).rate).toBeNull()
    expect(topSnapshot(of, moment(4000, 800), moment(2000, 500))).toMatchObject({
      elapsedMs: 3000,
      rate: { stepsPerSecond: 150, tokensPerSecond: 1500 },
    })
  })
  test('watts are those of the energy counter, else of the last sample, else unknown with the reason', () => {
    const first = moment(2000, 0, { joules: 100, ticks: 10, watts: 333 })
    const power = (now: Moment, before: Moment | null) => topSnapshot(of, now, before).power
    expect(power(moment(3000, 1, { joules: 300, ticks: 20, watts: 111 }), first)).toMatchObject({
      watts: 200,
      source: 'energy counter',
    })
    // Two moves of a counter that moves ten times a second tell nothing; neither does one that was reset.
    for (const other of [{ ticks: 12 }, { ticks: 20, resets: 1 }]) {
      expect(power(moment(3000, 1, { joules: 300, watts: 111, ...other }), first)).toMatchObject({
        watts: 111,
        source: 'power sample',
      })
    }
    expect(power(moment(3000, 1, {}, { joules: 'not permitted' }), first)).toMatchObject({
      watts: null,
      source: null,
      reason: 'not permitted',
    })
  })
})

describe('the command line', () => {
  test('defaults and every option', () => {
    expect(parseCommand(['top'])).toEqual({
      name: 'top',
      options: { device: 'auto', strategy: 'auto', intervalMs: 1000, seconds: null, seed: 0, json: false },
    })
    const words = [
      'top',
      '--device',
      'cpu',
      '--strategy=tiered',
      '--interval',
      '250',
      '--seconds',
      '9',
      '--seed',
      '3',
      '--json',
    ]
    expect(parseCommand(words)).toEqual({
      name: 'top',
      options: { device: 'cpu', strategy: 'tiered', intervalMs: 250, seconds: 9, seed: 3, json: true },
    })
    expect(parseCommand(['top', '--help'])).toEqual({ name: 'help', topic: 'top' })
  })
  test.each([
    [['top', '--interval', '99'], "--interval: expected an integer from 100 to 60000, got '99'"],
    [['top', '--seconds', '0'], "--seconds: expected an integer from 1 to 86400, got '0'"],
    [['top', '--strategy', 'tierd'], "--strategy: expected auto, fused, tiered, streams, cooperative, got 'tierd'"],
    [['top', '--second', '1'], "unknown option '--second'; did you mean '--seconds'?"],
    [['top', 'now'], "unexpected argument 'now'"],
    [['topp'], "unexpected argument 'topp'; did you mean 'top'?"],
  ])('%j', (words, message) => {
    expect(() => parseCommand(words)).toThrow(message)
  })
})

test('the documentation has every field of the JSON', () => {
  const docs = readFileSync(new URL('../../../docs/demo.md', import.meta.url), 'utf8')
  for (const field of Object.keys(snapshotOf())) expect(docs).toContain(`\`${field}\``)
})
