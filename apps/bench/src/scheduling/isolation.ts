/**
 * `bench isolation`: a decode tenant beside a prefill tenant, in every arrangement. What a tenant gets is the interval between its
 * completed steps, relative to having the whole chip alone; what the chip gives is the sum of the relative throughputs and the joules
 * for each token. `auto` chooses from short trials (`chooseArrangement`) and is then measured as long as the others.
 */
import {
  type TenantArrangement as Arrangement,
  chooseArrangement,
  describeDevice,
  EnergyMonitor,
  SlicePartition,
  Stream,
} from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import type { Shape } from '../shapes.js'
import { drive, type Loop } from './loop.js'
import { quantile } from './statistics.js'
import { type Arranged, alone, arrangeTenants, Tenant } from './tenants.js'

export interface IsolationOptions {
  readonly device: 'cpu' | 'cuda'
  readonly decode: { readonly shape: Shape; readonly tokens: number }
  readonly prefill: { readonly shape: Shape; readonly tokens: number }
  /** SMs of decode's slice to try. */
  readonly decodeSms: readonly number[]
  /** Slices of decode in which its kernels have at most so many megabytes of weights under way (`readAheadBytes`), to try besides. */
  readonly readAhead: readonly { readonly sms: number; readonly mb: number }[]
  readonly minSteps: number
  readonly seconds: number
  /** The bound that `auto` keeps: decode's p99 relative to its p50 alone. */
  readonly p99Bound: number
  readonly onProgress: (line: string) => void
}

export interface TenantFigures {
  readonly steps: number
  readonly p50Us: number
  readonly p99Us: number
  /** Relative to the same tenant alone on the whole device. */
  readonly p50: number
  readonly p99: number
  readonly throughput: number
}

export interface IsolationRow {
  readonly arrangement: string
  readonly kind: Arrangement['kind']
  readonly sms: readonly number[] | null
  /** Decode's limit of bytes under way; `null` without. */
  readonly readAheadBytes: number | null
  readonly decode: TenantFigures
  readonly prefill: TenantFigures
  /** Sum of the relative throughputs. */
  readonly together: number
  /** Prefill's relative throughput over its share of the SMs; `null` without slices. */
  readonly prefillOfShare: number | null
  readonly joules: number | null
  readonly joulesPerToken: number | null
  readonly watts: number | null
  readonly energyReason: string | null
}

export interface IsolationResult {
  readonly kind: 'isolation'
  readonly what: string
  readonly environment: Environment
  readonly options: Omit<IsolationOptions, 'onProgress'>
  readonly alone: Readonly<
    Record<'decode' | 'prefill', { readonly p50Us: number; readonly p99Us: number; readonly stepsPerSecond: number }>
  >
  /** Each tenant alone in its slice: what the slice costs without the neighbour. */
  readonly aloneInSlice: readonly {
    readonly tenant: string
    readonly sms: number
    readonly p50: number
    readonly p99: number
  }[]
  readonly rows: readonly IsolationRow[]
  readonly failed: readonly { readonly arrangement: string; readonly why: string }[]
  readonly auto: {
    readonly p99BoundUs: number
    readonly chosen: string
    readonly reason: string
    /** Of the best arrangement that keeps the bound in the long runs. */
    readonly best: string | null
    readonly ofBest: number | null
    readonly row: IsolationRow | null
  }
}

interface Timing {
  readonly p50Us: number
  readonly p99Us: number
  readonly stepsPerSecond: number
  readonly steps: number
}

function timing(loop: Loop, tenantSteps = 1): Timing {
  const us = loop.intervalsUs
  const total = us.reduce((sum, x) => sum + x, 0)
  return {
    p50Us: quantile(us, 0.5),
    p99Us: quantile(us, 0.99),
    stepsPerSecond: (us.length * tenantSteps * 1e6) / total,
    steps: us.length * tenantSteps,
  }
}

async function warmUp(loops: readonly Loop[]): Promise<void> {
  await drive(loops, () => loops.every((loop) => loop.completed >= 12))
  for (const loop of loops) loop.restart()
}

/** Runs until decode has made `minSteps` steps and `seconds` are over. */
async function measure(loops: readonly Loop[], counted: Loop, minSteps: number, seconds: number): Promise<void> {
  await warmUp(loops)
  const end = performance.now() + seconds * 1e3
  await drive(loops, () => counted.intervalsUs.length >= minSteps && performance.now() >= end)
}

export async function isolationBench(options: IsolationOptions): Promise<IsolationResult> {
  const { device, decodeSms, readAhead, minSteps, seconds, onProgress } = options
  const sms = describeDevice(device).sms
  const decode = await Tenant.create('decode', options.decode.shape, options.decode.tokens, device, 1)
  const prefill = await Tenant.create('prefill', options.prefill.shape, options.prefill.tokens, device, 2)
  const monitor = new EnergyMonitor({ device })
  const failed: { arrangement: string; why: string }[] = []
  try {
    const single = async (tenant: Tenant, stream: Stream, steps: number, time: number) => {
      const loop = alone(tenant, stream)
      await measure([loop], loop, steps, time)
      const seen = timing(loop)
      loop.dispose()
      return seen
    }
    const whole = Stream.create({ device })
    const aloneDecode = await single(decode, whole, minSteps, seconds / 2)
    const alonePrefill = await single(prefill, whole, Math.min(minSteps, 200), seconds / 2)
    onProgress(
      `alone: decode p50 ${aloneDecode.p50Us.toFixed(1)} p99 ${aloneDecode.p99Us.toFixed(1)} us, prefill p50 ` +
        `${alonePrefill.p50Us.toFixed(0)} us`,
    )
    whole.dispose()

    const relative = (seen: Timing, to: Timing): TenantFigures => ({
      steps: seen.steps,
      p50Us: seen.p50Us,
      p99Us: seen.p99Us,
      p50: seen.p50Us / to.p50Us,
      p99: seen.p99Us / to.p99Us,
      throughput: seen.stepsPerSecond / to.stepsPerSecond,
    })
    const run = async (
      arrangement: Arrangement,
      steps: number,
      time: number,
      metered: boolean,
    ): Promise<IsolationRow> => {
      const arranged: Arranged = arrangeTenants(arrangement, decode, prefill)
      try {
        const work = () => measure(arranged.loops, arranged.decode, steps, time)
        const energy = metered ? await monitor.measure(work) : await work().then(() => null)
        const a = relative(timing(arranged.decode), aloneDecode)
        const b = relative(timing(arranged.prefill), alonePrefill)
        const tokens = a.steps * decode.tokens + b.steps * prefill.tokens
        const prefillSms = arrangement.sms?.[1] ?? null
        return {
          arrangement: arrangement.name,
          kind: arrangement.kind,
          sms: arrangement.sms,
          readAheadBytes: arrangement.readAheadBytes?.[0] ?? null,
          decode: a,
          prefill: b,
          together: a.throughput + b.throughput,
          prefillOfShare: prefillSms === null ? null : b.throughput / (prefillSms / sms),
          joules: energy?.joules ?? null,
          joulesPerToken: energy?.joules == null ? null : energy.joules / tokens,
          watts: energy?.meanWatts ?? null,
          energyReason: energy === null ? 'a trial is too short to be metered' : energy.reason,
        }
      } finally {
        arranged.dispose()
      }
    }

    const aloneInSlice: { tenant: string; sms: number; p50: number; p99: number }[] = []
    for (const n of decodeSms) {
      const slices = [
        { name: 'decode', sms: n },
        { name: 'prefill', sms: sms - n },
      ]
      const partition = SlicePartition.build(device, slices)
      for (const [tenant, to] of [
        [decode, aloneDecode],
        [prefill, alonePrefill],
      ] as const) {
        const seen = await single(tenant, partition.stream(tenant.name), Math.min(minSteps, 200), 0.2)
        const width = tenant === decode ? n : sms - n
        aloneInSlice.push({ tenant: tenant.name, sms: width, p50: seen.p50Us / to.p50Us, p99: seen.p99Us / to.p99Us })
      }
      partition.dispose()
    }

    const candidates: Arrangement[] = [
      { name: 'alternating', kind: 'alternating', sms: null },
      { name: 'plain streams', kind: 'streams', sms: null },
      { name: 'priorities', kind: 'priorities', sms: null },
      { name: 'co-resident', kind: 'co-resident', sms: null },
      ...decodeSms.map((n) => ({ name: `slices ${n} + ${sms - n}`, kind: 'slices' as const, sms: [n, sms - n] })),
      ...readAhead.map(({ sms: n, mb }) => ({
        name: `slices ${n} + ${sms - n}, ${mb} MB ahead`,
        kind: 'slices' as const,
        sms: [n, sms - n],
        readAheadBytes: [mb * 1e6, null],
      })),
      ...decodeSms.map((n) => ({
        name: `cooperative ${n} + ${sms - n}`,
        kind: 'grid-cap' as const,
        sms: [n, sms - n],
      })),
    ]
    const rows: IsolationRow[] = []
    for (const arrangement of candidates) {
      try {
        const row = await run(arrangement, minSteps, seconds, true)
        rows.push(row)
        onProgress(
          `${row.arrangement}: decode p50 ${row.decode.p50.toFixed(2)} p99 ${row.decode.p99.toFixed(2)}, prefill ` +
            `${row.prefill.throughput.toFixed(3)}, together ${row.together.toFixed(3)}, ${row.watts?.toFixed(0) ?? '-'} W`,
        )
      } catch (error) {
        const why = errorText(error)
        failed.push({ arrangement: arrangement.name, why })
        onProgress(`${arrangement.name}: ${why}`)
      }
    }

    const p99BoundUs = options.p99Bound * aloneDecode.p99Us
    const trials = []
    for (const arrangement of candidates) {
      if (failed.some((each) => each.arrangement === arrangement.name)) continue
      const row = await run(arrangement, Math.min(500, minSteps), 0.3, false)
      trials.push({
        arrangement,
        tenants: [
          {
            name: 'decode',
            p50Us: row.decode.p50Us,
            p99Us: row.decode.p99Us,
            relativeThroughput: row.decode.throughput,
          },
          {
            name: 'prefill',
            p50Us: row.prefill.p50Us,
            p99Us: row.prefill.p99Us,
            relativeThroughput: row.prefill.throughput,
          },
        ],
      })
    }
    const choice = chooseArrangement(trials, { p99BoundUs: { decode: p99BoundUs } })
    onProgress(`auto: ${choice.reason}`)
    const row = await run(choice.chosen, minSteps, seconds, true)
    const within = rows.filter((each) => each.decode.p99Us <= p99BoundUs)
    const best = within.reduce<IsolationRow | null>((a, b) => (a === null || b.together > a.together ? b : a), null)

    return {
      kind: 'isolation',
      what:
        'a decode tenant beside a prefill tenant, each in a closed loop; intervals between completed steps, relative to the same tenant ' +
        'alone on the whole device; bf16, graph replays through the public layer API',
      environment: environment(decode.layer.device),
      options: {
        device,
        decode: options.decode,
        prefill: options.prefill,
        decodeSms,
        readAhead,
        minSteps,
        seconds,
        p99Bound: options.p99Bound,
      },
      alone: { decode: aloneDecode, prefill: alonePrefill },
      aloneInSlice,
      rows,
      failed,
      auto: {
        p99BoundUs,
        chosen: choice.chosen.name,
        reason: choice.reason,
        best: best?.arrangement ?? null,
        ofBest: best === null ? null : row.together / best.together,
        row,
      },
    }
  } finally {
    monitor.dispose()
    decode.dispose()
    prefill.dispose()
  }
}
