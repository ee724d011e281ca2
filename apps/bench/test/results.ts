/** Small results of each kind, made up so that both outcomes of every sentence are in them. */
import type { AblationResult, AblationRow } from '../src/ablation/bench.js'
import type { EnduranceResult } from '../src/endurance/bench.js'
import type { Float32Result } from '../src/float32/bench.js'
import type { LayerBenchResult } from '../src/layer/bench.js'
import type { LayerRow } from '../src/layer/measure.js'
import type { KernelRow, KernelsBenchResult } from '../src/primitives/kernels.js'
import type { RouterBenchResult } from '../src/primitives/router.js'
import type { CalibrationResult } from '../src/scheduling/calibration.js'
import type { ControlResult } from '../src/scheduling/control.js'
import type { IsolationResult, IsolationRow } from '../src/scheduling/isolation.js'
import type { SkewResult, SkewRow } from '../src/scheduling/skew.js'
import { parseShape } from '../src/shapes.js'
import type { SliceCostResult, Where } from '../src/slice-cost/bench.js'
import type { StartUpResult } from '../src/start-up/bench.js'
import type { TunedResult } from '../src/tuned/bench.js'

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
  readAheadBytes: null,
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
    readAhead: [{ sms: 48, mb: 8 }],
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
      parts: { hostBareUs: 4, hostWatchedUs: 4.75, deviceBareUs: 19.5, deviceWatchedUs: 19.75 },
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
      tiles: {
        fitted: { meanError: 0.02, p95Error: 0.04, maxError: 0.05 },
        heldOut: { meanError: 0.04, p95Error: 0.08, maxError: 0.12 },
        regimes: [],
      },
      cost: {
        fitted: { meanError: 0.03, p95Error: 0.06, maxError: 0.08 },
        heldOut: { meanError: 0.05, p95Error: 0.11, maxError: 0.18 },
        regimes: [],
      },
    },
  ],
}

export const layerRow = (shape: string, tokens: number, nexusUs: number, limitUs = 50): LayerRow => ({
  shape,
  tokens,
  skew: 0,
  expertsHit: 128,
  limitUs,
  nexusUs,
  nexusMinUs: nexusUs,
  nexusMaxUs: nexusUs,
  relativeError: 3e-3,
  ratio: nexusUs / limitUs,
  phasesUs: { router: 10, experts: 250, combine: 5 },
  variants: ['a', 'b'],
  peers: {},
})

export const layerResult: LayerBenchResult = {
  kind: 'layer',
  what: 'a layer',
  environment,
  seed: 1,
  peersError: null,
  rows: [
    {
      ...layerRow('qwen3-30b-a3b', 64, 300, 280),
      nexusWithRouterUs: 305,
      nexusInvariantUs: 330,
      invariantVariants: ['a', 'c'],
      peers: { torch_grouped_mm: 500, 'vllm_triton_best (anchor, scaled)': 290 },
    },
    { ...layerRow('seed-small', 64, 10, 6), peers: { torch_grouped_mm: 80 } },
  ],
  failed: [{ cell: 'mixtral-8x7b 64', why: 'out of memory' }],
}

export const routerResult: RouterBenchResult = {
  kind: 'router',
  what: 'routing',
  environment,
  seed: 1,
  peersError: null,
  countersReason: 'ncu is not on this machine',
  rows: [
    {
      experts: 128,
      topK: 8,
      tokens: 64,
      nexusUs: 5,
      nexusIntervalUs: [5, 5],
      weightError: 1e-7,
      bytes: { onePass: 36864, separate: 104448 },
      countedBytes: null,
      aimUs: 6,
      peers: { torch: 30 },
    },
    {
      experts: 128,
      topK: 8,
      tokens: 16384,
      nexusUs: 15,
      nexusIntervalUs: [15, 15],
      weightError: 1e-7,
      bytes: { onePass: 9437184, separate: 26738688 },
      countedBytes: 1e7,
      aimUs: 12,
      peers: { torch: 14 },
    },
  ],
}

const kernel = (variant: string, us: number, chosen: boolean): KernelRow => ({
  shape: 'olmoe-1b-7b',
  tokens: 64,
  phase: 'linear1',
  path: 'default',
  variant,
  chosen,
  us,
  gigabytesPerSecond: 4000,
  teraflopsPerSecond: 30,
})

export const kernelsResult: KernelsBenchResult = {
  kind: 'kernels',
  what: 'phases',
  environment,
  seed: 1,
  rows: [kernel('mine', 100, true), kernel('better', 90, false), kernel('worse', 120, false)],
  relativeErrors: { default: 2.9e-3 },
  failed: [{ what: 'NEXUS_CUDA_ARCH=80', why: 'not built' }],
}

const rung = (name: string, base: string | null, p50Us: number): AblationRow => ({
  shape: 'seed-small',
  tokens: 64,
  skew: 0,
  rung: name,
  base,
  steps: 1000,
  tokensPerSecond: 64e6 / p50Us,
  p50Us,
  p99Us: 1.1 * p50Us,
  relativeError: 3e-3,
  sameBits: base === null ? null : true,
  joulesPerToken: base === null ? null : 0.001,
  watts: base === null ? null : 500,
  smActivity: 0.5,
  smOccupancy: 0.25,
  tensorActivity: 0.125,
  dramActivity: 0.75,
  memoryUtilisation: 0.5,
  reasons: base === null ? { joulesPerToken: 'too short' } : {},
})

export const ablationResult: AblationResult = {
  kind: 'ablation',
  what: 'rungs',
  environment,
  seed: 1,
  seconds: 2,
  rows: [
    rung('textbook loop, torch', null, 2000),
    rung('fused kernels', 'textbook loop, ours', 40),
    rung('+ graphs', 'fused kernels', 25),
    rung('+ slices', '+ graphs', 50),
  ],
  failed: [{ cell: 'seed-small 64', rung: '+ streams', why: 'no streams' }],
}

const placed = (sms: number, where: Where, us: number) => ({
  shape: 'seed-small',
  tokens: 64,
  sms,
  where,
  graphUs: us,
  eagerUs: us + 5,
  phasesUs: { router: 5, experts: us - 8, combine: 3, total: us },
})

export const sliceCostResult: SliceCostResult = {
  kind: 'slice-cost',
  what: 'one layer alone',
  environment,
  seed: 1,
  rows: [placed(132, 'device', 30), placed(64, 'slice', 55), placed(64, 'cap', 31)],
  probes: [
    { sms: 132, where: 'device', eagerLaunchUs: 2, nodeUs: 1, graphUs: 2, gigabytesPerSecond: 4000 },
    { sms: 64, where: 'slice', eagerLaunchUs: 5, nodeUs: 4, graphUs: 6, gigabytesPerSecond: 3900 },
  ],
  fits: [
    { sms: 64, where: 'slice', how: 'graph', constantUs: 25, part: 0.001, worst: 0.01, points: 6 },
    { sms: 64, where: 'slice', how: 'eager', constantUs: 0.2, part: 0.09, worst: 0.01, points: 6 },
    { sms: 64, where: 'cap', how: 'graph', constantUs: 0.2, part: 0.001, worst: 0.01, points: 6 },
  ],
  failed: [{ sms: 4, why: 'too small' }],
}

const started = (firstMs: number) => ({ layerMs: 900, firstMs, secondMs: 0.4, laterMs: 0.3 })

export const startUpResult: StartUpResult = {
  kind: 'start-up',
  what: 'a new process',
  environment,
  seed: 1,
  rows: [
    { shape: 'seed-small', tokens: 64, runs: [started(20), started(30)], ...started(25), firstMaxMs: 30 },
    { shape: 'mixtral-8x7b', tokens: 512, runs: [started(150), started(250)], ...started(200), firstMaxMs: 250 },
  ],
  failed: [{ cell: 'qwen3-30b-a3b 64', why: 'out of memory' }],
}

const read = (steps: number, liveBytes: number) => ({ steps, liveBytes, freeBytes: 2 ** 30, residentBytes: 2 ** 27 })

export const enduranceResult: EnduranceResult = {
  kind: 'endurance',
  what: 'step after step',
  environment,
  seed: 1,
  shape: 'seed-small',
  tokens: [1, 64],
  rows: [
    {
      launch: 'graph',
      steps: 1000,
      seconds: 2,
      readings: [read(0, 2 ** 20), read(500, 2 ** 21), read(1000, 2 ** 21)],
      grownBytes: { live: 0, device: 0, resident: 2048 },
      sameBits: true,
    },
    {
      launch: 'eager',
      steps: 1000,
      seconds: 3,
      readings: [read(0, 2 ** 20), read(500, 2 ** 21), read(1000, 2 ** 21 + 1024)],
      grownBytes: { live: 1024, device: null, resident: -1024 },
      sameBits: false,
    },
  ],
}

export const float32Result: Float32Result = {
  kind: 'float32',
  what: 'float32',
  environment,
  seed: 1,
  rows: [
    {
      shape: 'olmoe-1b-7b',
      tokens: 4096,
      nexusUs: 4000,
      nexusTflops: 36,
      relativeError: 4e-7,
      sgemmTflops: 30,
    },
    {
      shape: 'seed-medium',
      tokens: 512,
      nexusUs: 900,
      nexusTflops: 24,
      relativeError: 4e-7,
      sgemmTflops: 20,
    },
  ],
  squareTflops: 50,
  peerError: null,
}

const stepOf = (tokens: number, speedup: number, noise: number) => ({
  shape: 'olmoe-1b-7b',
  tokens,
  heuristic: ['one', 'two'],
  chosen: speedup > 1 ? ['one', 'three'] : ['one', 'two'],
  speedup,
  noise,
})

export const tunedResult: TunedResult = {
  kind: 'tuned',
  what: 'whole steps',
  environment,
  seed: 1,
  rows: [stepOf(8, 1, 0.01), stepOf(64, 1.08, 0.02), stepOf(512, 1, 0.2)],
  seconds: { 'olmoe-1b-7b': 31.4 },
  skipped: [{ shape: 'olmoe-1b-7b', tokens: 4096 }],
}
