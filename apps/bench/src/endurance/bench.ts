/**
 * `bench endurance`: very many steps of one layer, and whether memory stays what it was after the first few: what tensors and workspaces hold,
 * what the device has free, what the process has resident. Batches of several sizes take turns, by recorded graphs and without them, so that
 * workspaces and graphs of all of them are used again and again. A size's first and last result are compared byte by byte.
 */
import { MoELayer, memoryStats, Stream, Tensor } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { layerOptions } from '../layer-options.js'
import { Owned } from '../owned.js'
import type { Shape } from '../shapes.js'

export interface EnduranceOptions {
  readonly device: 'cpu' | 'cuda'
  readonly shape: Shape
  /** Batch sizes, in turns. */
  readonly tokens: readonly number[]
  /** Steps of each way of launching, all sizes together. */
  readonly steps: number
  readonly seed: number
  readonly onProgress: (line: string) => void
}

/** Bytes at one moment, with nothing queued. */
export interface Reading {
  readonly steps: number
  /** Of tensors and workspaces on the device. */
  readonly liveBytes: number
  /** `null` where the device does not say, and on the CPU, whose memory others use too. */
  readonly freeBytes: number | null
  readonly residentBytes: number
}

export interface EnduranceRow {
  readonly launch: 'graph' | 'eager'
  readonly steps: number
  readonly seconds: number
  readonly readings: readonly Reading[]
  /** From the second reading, when everything has been made, to the last. Negative: less than then. */
  readonly grownBytes: { readonly live: number; readonly device: number | null; readonly resident: number }
  /** Whether each size's last result has the bytes of its first. */
  readonly sameBits: boolean
}

export interface EnduranceResult {
  readonly kind: 'endurance'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly shape: string
  readonly tokens: readonly number[]
  readonly rows: readonly EnduranceRow[]
}

const readingCount = 21
/** Steps that are queued before the host waits. */
const burst = 500

export async function enduranceBench(options: EnduranceOptions): Promise<EnduranceResult> {
  const { device, shape, tokens, seed } = options
  const rows: EnduranceRow[] = []
  for (const launch of ['graph', 'eager'] as const) rows.push(await endure(launch, options))
  return {
    kind: 'endurance',
    what: 'one layer, step after step, bf16, with its own router; memory read with nothing queued',
    environment: environment(device),
    seed,
    shape: shape.name,
    tokens,
    rows,
  }
}

async function endure(
  launch: EnduranceRow['launch'],
  { device, shape, tokens, steps, seed, onProgress }: EnduranceOptions,
): Promise<EnduranceRow> {
  using owned = new Owned()
  const { own } = owned
  const graphs = launch === 'graph' && { captureAfter: 1, maxTokens: Math.max(...tokens) }
  const layer = own(await MoELayer.create({ ...layerOptions(shape, device, 'bf16'), graphs, seed }))
  const stream = own(Stream.create({ device }))
  const dims = (n: number) => [n, shape.hidden]
  const batches = tokens.map((n, i) => ({
    x: own(Tensor.randn(dims(n), { dtype: 'bf16', device, seed: seed + 1 + i })),
    out: own(Tensor.empty(dims(n), { dtype: 'bf16', device })),
  }))
  const step = (i: number) => {
    const batch = batches[i % batches.length]
    if (batch) layer.enqueue(batch.x, { out: batch.out, stream })
  }
  for (let i = 0; i < batches.length; i++) step(i)
  const first = await Promise.all(batches.map(({ out }) => out.toFloat32Array()))
  const readings: Reading[] = []
  const began = performance.now()
  let done = 0
  for (let r = 0; r < readingCount; r++) {
    const until = Math.round((steps * r) / (readingCount - 1))
    while (done < until) {
      for (const end = Math.min(until, done + burst); done < end; done++) step(done)
      await stream.synchronize()
    }
    readings.push(reading(device, done))
    onProgress(`${launch}: ${done} of ${steps} steps, ${((performance.now() - began) / 1e3).toFixed(1)} s`)
  }
  const seconds = (performance.now() - began) / 1e3
  const last = await Promise.all(batches.map(({ out }) => out.toFloat32Array()))
  const sameBits = last.every((values, i) => values.every((value, j) => Object.is(value, first[i]?.[j])))
  return { launch, steps, seconds, readings, grownBytes: grown(readings), sameBits }
}

function reading(device: 'cpu' | 'cuda', steps: number): Reading {
  const { liveBytes, freeBytes } = memoryStats(device)
  return {
    steps,
    liveBytes,
    freeBytes: device === 'cpu' ? null : freeBytes,
    residentBytes: process.memoryUsage.rss(),
  }
}

/** The first reading is ahead of all steps but one of each size. */
export function grown(readings: readonly Reading[]): EnduranceRow['grownBytes'] {
  const [, from] = readings
  const to = readings.at(-1)
  if (from === undefined || to === undefined) throw new RangeError('readings: expected at least two, got fewer')
  return {
    live: to.liveBytes - from.liveBytes,
    device: from.freeBytes === null || to.freeBytes === null ? null : from.freeBytes - to.freeBytes,
    resident: to.residentBytes - from.residentBytes,
  }
}
