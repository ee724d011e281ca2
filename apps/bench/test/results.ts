/** Small results of each kind, made up so that both outcomes of every sentence are in them. */
import type { CalibrationResult } from '../src/scheduling/calibration.js'
import type { ControlResult } from '../src/scheduling/control.js'
import type { IsolationResult, IsolationRow } from '../src/scheduling/isolation.js'
import type { SkewResult, SkewRow } from '../src/scheduling/skew.js'
import { parseShape } from '../src/shapes.js'

const environment = {
  date: '2026-01-02T03:04:05.000Z',
  node: 'v20',
  device: 'a device',
  driver: '1.2',
  cudaRuntime: '13.0',
  cpu: 'a processor',
  cpuThreads: 2,
}

const tenant = (p99: number, throughput: number) => ({
  steps: 2000,
  p50Us: 100 * p99,
  p99Us: 100 * p99,
  p50: p99 - 0.02,
  p99,
  throughput,
})

const row = (
  arrangement: string,
  kind: IsolationRow['kind'],
  p99: number,
  prefill: number,
  of: number | null,
): IsolationRow => ({
  arrangement,
  kind,
  sms: of === null ? null : [48, 84],
  decode: tenant(p99, 0.9),
  prefill: tenant(1 / prefill, prefill),
  together: 0.9 + prefill,
  prefillOfShare: of,
  joules: null,
  joulesPerToken: null,
  watts: null,
  energyReason: 'no counter',
})

export const isolationResult: IsolationResult = {
  kind: 'isolation',
  what: 'two tenants',
  environment,
  options: {
    device: 'cuda',
    decode: { shape: parseShape('qwen3-30b-a3b'), tokens: 64 },
    prefill: { shape: parseShape('mixtral-8x7b'), tokens: 4096 },
    decodeSms: [48],
    minSteps: 2000,
    seconds: 4,
    p99Bound: 1.15,
  },
  alone: {
    decode: { p50Us: 90, p99Us: 100, stepsPerSecond: 10000 },
    prefill: { p50Us: 4000, p99Us: 4100, stepsPerSecond: 250 },
  },
  aloneInSlice: [{ tenant: 'decode', sms: 48, p50: 1.01, p99: 1.02 }],
  rows: [row('plain streams', 'streams', 3, 0.95, null), row('slices 48 + 84', 'slices', 1.1, 0.5 + 0.1, 0.8)],
  failed: [{ arrangement: 'co-resident', why: 'no shared memory' }],
  auto: {
    p99BoundUs: 115,
    chosen: 'slices 48 + 84',
    reason: 'the only one within the bound',
    best: 'slices 48 + 84',
    ofBest: 0.99,
    row: row('slices 48 + 84', 'slices', 1.1, 0.6, 0.8),
  },
}

const ratio = (value: number) => ({ ratio: value, low: value - 0.01, high: value + 0.01, pairs: 200 })

const cell = (tokens: number, tiered: number, auto: number): SkewRow => ({
  shape: 'olmoe-1b-7b',
  tokens,
  skew: 1.5,
  medianUs: { fused: 100, tiered: 100 * tiered, cooperative: 100, auto: 100 },
  tieredToFused: ratio(tiered),
  cooperativeToFused: ratio(1),
  autoToBest: ratio(auto),
  autoChose: 'fused',
  autoReason: 'measured',
  slices: [{ name: 'hot', sms: 84, experts: 4, enforcement: 'hardware' }],
})

export const skewResult: SkewResult = {
  kind: 'skew',
  what: 'one layer by strategy',
  environment,
  rounds: 200,
  seed: 1,
  rows: [cell(64, 0.9, 1.11), cell(2048, 1.2, 1)],
}

export const controlResult: ControlResult = {
  kind: 'control',
  what: 'what control costs',
  environment,
  host: [
    { what: 'a decision', medianUs: 40, p99Us: 60, boundUs: 50 },
    { what: 'a switch', medianUs: 25, p99Us: 30, boundUs: 20 },
    { what: 'an eager step', medianUs: 12, p99Us: 15, boundUs: null },
  ],
  launch: { eagerUs: 2.5, graphUs: 32, nodes: 64, perNodeUs: 0.5 },
  watched: [
    {
      shape: 'seed-small',
      tokens: 64,
      bareUs: 20,
      watchedUs: 21,
      addedUs: 1,
      ratio: { ratio: 1.05, low: 1.04, high: 1.06, pairs: 400 },
      allowedUs: 0.5,
    },
  ],
}

export const calibrationResult: CalibrationResult = {
  kind: 'calibration',
  what: 'step times',
  environment,
  measurements: {
    format: 'nexus-step-measurements/1',
    device: 'a device',
    sms: 132,
    scope: 'layer',
    shapes: [],
    rows: [],
  },
  fits: [
    {
      shape: 'olmoe-1b-7b',
      rows: 30,
      fitted: { meanError: 0.02, p95Error: 0.04, maxError: 0.05 },
      heldOut: { meanError: 0.04, p95Error: 0.08, maxError: 0.12 },
      regimes: [],
    },
  ],
}
