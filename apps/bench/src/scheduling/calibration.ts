/**
 * `bench calibration`: step times of one layer over shapes, loads and layouts on the device, in the simulator's own format, then the
 * simulator's models fitted to some of them and held against the rest. A simulator whose step times are not the device's proves nothing about it.
 */
import {
  type AllocationPolicy,
  type DeviceDescription,
  describeDevice,
  Event,
  MoELayer,
  type Placement,
  SlicePartition,
  Stream,
  Tensor,
  tenant,
} from '@nexus/core'
import {
  checkMeasurements,
  type MeasuredShape,
  type StepMeasurement,
  type StepMeasurements,
} from '@nexus/slices/simulator'
import { type Environment, environment } from '../environment.js'
import { layerOptions, usualDtype } from '../layer-options.js'
import { cellLogits } from '../random.js'
import type { Shape } from '../shapes.js'
import { type ArrangedStep, arrangedOf, arrangements } from './arranged.js'
import type { Clock } from './clocks.js'
import { type CalibrationFit, fitsOf } from './fits.js'
import { medianInterval, quantile } from './statistics.js'
import { keyOf, type UnseenSteps, unseenOf } from './unseen.js'

export interface CalibrationOptions {
  readonly device: 'cpu' | 'cuda'
  readonly shapes: readonly Shape[]
  readonly tokens: readonly number[]
  readonly skews: readonly number[]
  /** Parts of the device that one slice has, for a whole step in it. */
  readonly parts: readonly number[]
  /** Clocks by which loads are also arranged in three slices, as policies do it; none is fine. */
  readonly arranged: readonly Clock[]
  readonly samples: number
  /** Whether cost models are fitted to what was measured, which takes a minute; they can be later ({@link refit}). */
  readonly fit: boolean
  readonly onProgress: (line: string) => void
}

export interface CalibrationResult {
  readonly kind: 'calibration'
  readonly what: string
  readonly environment: Environment
  readonly measurements: StepMeasurements
  readonly fits: readonly CalibrationFit[]
  /** Of another file's steps; and what of them are loads that were arranged by different models. */
  readonly unseen?: readonly UnseenSteps[]
  readonly arranged?: readonly ArrangedStep[]
}

/** A policy that says what it is told to: for measuring one layout. */
function given(sms: readonly number[], sliceOf: readonly number[]): AllocationPolicy {
  return { name: 'given', decide: () => ({ sms: [...sms], sliceOf: [...sliceOf], reason: 'a layout to be measured' }) }
}

/** Two slices: the hottest experts that hold `share` of the load have `sms` SMs. */
function twoSlices(counts: readonly number[], share: number): number[] {
  const order = counts.map((_, e) => e).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b)
  const total = counts.reduce((sum, x) => sum + x, 0)
  const sliceOf = new Array<number>(counts.length).fill(1)
  let sum = 0
  for (const [i, e] of order.entries()) {
    if (i > 0 && (sum >= share * total || i === order.length - 1)) break
    sliceOf[e] = 0
    sum += counts[e] ?? 0
  }
  return sliceOf
}

export async function calibrationBench(options: CalibrationOptions): Promise<CalibrationResult> {
  const { device, onProgress } = options
  const description = describeDevice(device)
  const rows: StepMeasurement[] = []
  for (const shape of options.shapes) await measureShape(shape, options, description, rows)
  const shapes: MeasuredShape[] = options.shapes.map((s) => ({
    name: s.name,
    inputDim: s.hidden,
    hiddenDim: s.inter,
    outputDim: s.hidden,
    numExperts: s.experts,
    topK: s.topK,
    bytesPerValue: device === 'cuda' ? 2 : 4,
  }))
  const measurements: StepMeasurements = {
    format: 'nexus-step-measurements/1',
    device: description.name,
    sms: description.sms,
    scope: 'layer',
    shapes,
    rows,
  }
  return {
    kind: 'calibration',
    what: 'step times by shape, load and layout; models fitted to them, and held against rows that the fit did not see',
    environment: environment(device),
    measurements,
    fits: options.fit ? fitsOf(measurements, description, onProgress) : [],
  }
}

/** @throws TypeError or RangeError that says what is wrong with a file of `bench calibration` */
export function checkedFile(file: unknown): CalibrationResult {
  const result = file as CalibrationResult | null
  if (typeof result !== 'object' || result === null || result.kind !== 'calibration') {
    throw new TypeError("expected a result file of kind 'calibration'")
  }
  return { ...result, measurements: checkMeasurements(result.measurements) }
}

/**
 * A result file whose steps are the means over it and other runs that have them too: at the power limit the same step differs by up to 13 % between
 * two runs. Steps that only the others have are left out.
 * @throws TypeError or RangeError that names what is wrong with a file
 */
export function meanOf(file: unknown, others: readonly unknown[]): CalibrationResult {
  const result = checkedFile(file)
  const runs = new Map(result.measurements.rows.map((row) => [keyOf(row), [row.us]]))
  for (const other of others) {
    for (const row of checkedFile(other).measurements.rows) runs.get(keyOf(row))?.push(row.us)
  }
  const rows = result.measurements.rows.map((row) => {
    const times = runs.get(keyOf(row)) ?? [row.us]
    return { ...row, us: times.reduce((sum, us) => sum + us, 0) / times.length, samples: row.samples * times.length }
  })
  const { what } = result
  return {
    ...result,
    what: `${what}; each step is the mean of up to ${others.length + 1} runs`,
    measurements: { ...result.measurements, rows },
  }
}

/**
 * A result file with its fits computed anew from its measurements: without a device, the environment as it was measured.
 * @param device - whose curves are scaled; of as many SMs as were measured
 * @param other - another result file, whose steps the fits are held against
 * @throws TypeError or RangeError that names what is wrong with a file
 */
export function refit(
  file: unknown,
  device: DeviceDescription,
  onProgress: (line: string) => void,
  other?: unknown,
): CalibrationResult {
  const { unseen: _, arranged: __, ...result } = checkedFile(file)
  const { measurements } = result
  const against = other === undefined ? null : checkedFile(other).measurements
  const unseen = against && { unseen: unseenOf(measurements, against, device), arranged: arrangedOf(against.rows) }
  return { ...result, fits: fitsOf(measurements, device, onProgress), ...unseen }
}

async function measureShape(
  shape: Shape,
  options: CalibrationOptions,
  description: DeviceDescription,
  rows: StepMeasurement[],
): Promise<void> {
  const { sms, granularity, minSms } = description
  const { device, samples, onProgress } = options
  const dtype = usualDtype(device)
  const common = { ...layerOptions(shape, device, dtype), graphs: { captureAfter: 1 } } as const
  const fused = await MoELayer.create({ ...common, seed: 1 })
  try {
    for (const tokens of options.tokens) {
      for (const skew of options.skews) {
        const [host] = cellLogits(tokens, shape.experts, 1, skew, 11 + tokens)
        if (!host) continue
        const logits = Tensor.from(host, [tokens, shape.experts], { device })
        const x = Tensor.randn([tokens, shape.hidden], { dtype, device, seed: 5 })
        const out = Tensor.empty([tokens, shape.hidden], { dtype, device })
        const { stats } = await fused.forward(x, { logits, out })
        const counts = [...stats.counts]
        const add = async (
          row: Pick<StepMeasurement, 'strategy' | 'sms' | 'sliceOf'>,
          stream: Stream,
          step: () => void,
        ) => {
          const times = await time(stream, samples, step)
          const us = quantile(times, 0.5)
          rows.push({
            shape: shape.name,
            tokens,
            ...row,
            counts,
            us,
            samples,
            interval: medianInterval(times),
          })
        }
        const stream = Stream.default(device)
        const sliced = async ({ sms, sliceOf }: Placement) => {
          const layer = await MoELayer.create({
            ...common,
            weightsFrom: fused,
            strategy: 'tiered',
            slices: { policy: given(sms, sliceOf) },
          })
          await add({ strategy: 'tiered', sms, sliceOf }, stream, () => layer.enqueue(x, { logits, out }))
          await stream.synchronize()
          layer.dispose()
        }
        await add({ strategy: 'fused', sms: [sms], sliceOf: null }, stream, () => fused.enqueue(x, { logits, out }))
        for (const part of options.parts) {
          const n = Math.min(sms - minSms, Math.max(minSms, Math.round((sms * part) / granularity) * granularity))
          const partition = SlicePartition.build(device, [
            { name: 'here', sms: n },
            { name: 'rest', sms: sms - n },
          ])
          const slice = partition.stream('here')
          await add({ strategy: 'fused', sms: [n], sliceOf: null }, slice, () => {
            fused[tenant](slice, x, { logits, out })
          })
          partition.dispose()
          await sliced({ sms: [n, sms - n], sliceOf: twoSlices(counts, part) })
        }
        for (const placement of arrangements(options.arranged, shape, counts, description)) await sliced(placement)
        for (const each of [logits, x, out]) each.dispose()
      }
      onProgress(`${shape.name} ${tokens} tokens: ${rows.length} rows`)
    }
  } finally {
    fused.dispose()
  }
}

const warmUpMs = 40

/** Microseconds of single steps on a device that is busy with the one before. */
async function time(stream: Stream, samples: number, step: () => void): Promise<number[]> {
  // Also until the chip's clocks have settled to this load.
  for (let i = 0, end = performance.now() + warmUpMs; i < 6 || performance.now() < end; i++) {
    step()
    if (i % 6 === 5) await stream.synchronize()
  }
  await stream.synchronize()
  const marks = Array.from({ length: samples + 1 }, () => Event.create(stream.device))
  marks[0]?.record(stream)
  for (let i = 1; i <= samples; i++) {
    step()
    marks[i]?.record(stream)
    if (i % 64 === 0) await stream.synchronize()
  }
  await stream.synchronize()
  const times: number[] = []
  for (let i = 1; i <= samples; i++) {
    const [before, after] = [marks[i - 1], marks[i]]
    // Behind a wait the host is late: such steps are not counted.
    if (before && after && (i - 1) % 64 !== 0) times.push(before.elapsedMs(after) * 1e3)
  }
  for (const mark of marks) mark.dispose()
  return times
}
