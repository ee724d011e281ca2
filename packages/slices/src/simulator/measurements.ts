/**
 * Measured step times as plain data: what a benchmark on a device writes and the calibration reads. One file is one device; a row is one
 * step, laid out in one way, with the counts that its experts had.
 */
import { checkInteger, checkNumber, checkOneOf, checkOptions, describe } from '@nexus/native'

/** A layer's gated experts, as far as time depends on them. */
export interface MeasuredShape {
  /** For people, and to tell shapes apart. */
  readonly name: string
  readonly inputDim: number
  readonly hiddenDim: number
  readonly outputDim: number
  readonly numExperts: number
  readonly topK: number
  /** Bytes of a weight or an activation: 2 for bf16. */
  readonly bytesPerValue: number
}

/** One step. */
export interface StepMeasurement {
  /** Name of one of the file's shapes. */
  readonly shape: string
  readonly tokens: number
  /** How the experts ran. Slices of 'fused' are one: the whole device. */
  readonly strategy: 'fused' | 'tiered' | 'cooperative'
  /** SMs of each slice that runs experts. */
  readonly sms: readonly number[]
  /** Slice of each expert, as an index of `sms`; `null` where there is one slice. */
  readonly sliceOf: readonly number[] | null
  /** Assignments of each expert; their sum is tokens · topK. */
  readonly counts: readonly number[]
  /** Microseconds of the step: the median of `samples` steps. */
  readonly us: number
  /** How many steps the median is of. */
  readonly samples: number
  /** The ends of the median's 95 % interval, in microseconds; `null` when it was not computed. */
  readonly interval: readonly [low: number, high: number] | null
}

/** A file of measurements. */
export interface StepMeasurements {
  readonly format: 'nexus-step-measurements/1'
  /** Name of the device, its driver, the date: for people. */
  readonly device: string
  /** SMs of the whole device. */
  readonly sms: number
  /** What a step's time spans: 'layer' from x to y, 'experts' the grouped experts alone. The same in all rows. */
  readonly scope: 'layer' | 'experts'
  readonly shapes: readonly MeasuredShape[]
  readonly rows: readonly StepMeasurement[]
}

const shapeKeys = ['name', 'inputDim', 'hiddenDim', 'outputDim', 'numExperts', 'topK', 'bytesPerValue'] as const
const rowKeys = ['shape', 'tokens', 'strategy', 'sms', 'sliceOf', 'counts', 'us', 'samples', 'interval'] as const

function list(name: string, value: unknown): readonly unknown[] {
  if (Array.isArray(value)) return value
  throw new TypeError(`${name}: expected an array, got ${describe(value)}`)
}

function object(name: string, value: unknown, keys: readonly string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null) {
    throw new TypeError(`${name}: expected an object, got ${describe(value)}`)
  }
  checkOptions(name, value, keys)
  return value as Record<string, unknown>
}

function checkShape(name: string, value: unknown): MeasuredShape {
  const shape = object(name, value, shapeKeys)
  if (typeof shape.name !== 'string' || shape.name === '') {
    throw new TypeError(`${name}.name: expected a name, got ${describe(shape.name)}`)
  }
  for (const key of ['inputDim', 'hiddenDim', 'outputDim', 'numExperts', 'topK'] as const) {
    checkInteger(`${name}.${key}`, shape[key], 1)
  }
  checkNumber(`${name}.bytesPerValue`, shape.bytesPerValue, 0.125)
  return shape as unknown as MeasuredShape
}

function checkRow(
  name: string,
  value: unknown,
  shapes: ReadonlyMap<string, MeasuredShape>,
  device: number,
): StepMeasurement {
  const row = object(name, value, rowKeys)
  const shape = typeof row.shape === 'string' ? shapes.get(row.shape) : undefined
  if (!shape) {
    throw new RangeError(`${name}.shape: expected one of ${[...shapes.keys()].join(', ')}, got ${describe(row.shape)}`)
  }
  const tokens = checkInteger(`${name}.tokens`, row.tokens, 0)
  const strategy = checkOneOf(`${name}.strategy`, row.strategy, ['fused', 'tiered', 'cooperative'])
  const sms = list(`${name}.sms`, row.sms)
  let total = 0
  for (const [s, n] of sms.entries()) total += checkInteger(`${name}.sms[${s}]`, n, 1)
  if (sms.length === 0 || total > device) {
    throw new RangeError(`${name}.sms: expected 1 to ${device} SMs in all, got ${describe(row.sms)}`)
  }
  if (strategy === 'fused' && sms.length !== 1) {
    throw new RangeError(`${name}.sms: expected one slice with 'fused', got ${sms.length}`)
  }
  const counts = list(`${name}.counts`, row.counts)
  let assignments = 0
  for (const [e, n] of counts.entries()) assignments += checkInteger(`${name}.counts[${e}]`, n, 0)
  if (counts.length !== shape.numExperts || assignments !== tokens * shape.topK) {
    const expected = `${shape.numExperts} counts with a sum of ${tokens * shape.topK} (tokens × topK)`
    throw new RangeError(`${name}.counts: expected ${expected}, got ${counts.length} with ${assignments}`)
  }
  if (row.sliceOf !== null || sms.length > 1) {
    const sliceOf = list(`${name}.sliceOf`, row.sliceOf)
    if (sliceOf.length !== shape.numExperts) {
      throw new RangeError(`${name}.sliceOf: expected ${shape.numExperts} slices, got ${sliceOf.length}`)
    }
    for (const [e, s] of sliceOf.entries()) checkInteger(`${name}.sliceOf[${e}]`, s, 0, sms.length - 1)
  }
  const us = checkNumber(`${name}.us`, row.us, 0)
  if (us === 0) throw new RangeError(`${name}.us: expected more than 0, got 0`)
  checkInteger(`${name}.samples`, row.samples, 1)
  if (row.interval !== null) {
    const ends = list(`${name}.interval`, row.interval)
    if (ends.length !== 2) throw new RangeError(`${name}.interval: expected two ends, got ${ends.length}`)
    const low = checkNumber(`${name}.interval[0]`, ends[0], 0)
    checkNumber(`${name}.interval[1]`, ends[1], low)
  }
  return row as unknown as StepMeasurement
}

/**
 * What came from a file, checked whole.
 * @throws TypeError or RangeError that names the field, what came and what was expected
 */
export function checkMeasurements(value: unknown): StepMeasurements {
  const file = object('measurements', value, ['format', 'device', 'sms', 'scope', 'shapes', 'rows'])
  checkOneOf('measurements.format', file.format, ['nexus-step-measurements/1'])
  if (typeof file.device !== 'string') {
    throw new TypeError(`measurements.device: expected a string, got ${describe(file.device)}`)
  }
  const sms = checkInteger('measurements.sms', file.sms, 1, 65536)
  checkOneOf('measurements.scope', file.scope, ['layer', 'experts'])
  const shapes = new Map<string, MeasuredShape>()
  for (const [i, each] of list('measurements.shapes', file.shapes).entries()) {
    const shape = checkShape(`measurements.shapes[${i}]`, each)
    if (shapes.has(shape.name)) {
      throw new RangeError(`measurements.shapes[${i}].name: ${describe(shape.name)} is there twice`)
    }
    shapes.set(shape.name, shape)
  }
  for (const [i, row] of list('measurements.rows', file.rows).entries()) {
    checkRow(`measurements.rows[${i}]`, row, shapes, sms)
  }
  return file as unknown as StepMeasurements
}

/** The rows of one shape only. */
export function rowsOf(measurements: StepMeasurements, shape: string): StepMeasurements {
  const shapes = measurements.shapes.filter(({ name }) => name === shape)
  if (shapes.length === 0) {
    const names = measurements.shapes.map(({ name }) => name).join(', ')
    throw new RangeError(`shape: expected one of ${names}, got ${describe(shape)}`)
  }
  return { ...measurements, shapes, rows: measurements.rows.filter((row) => row.shape === shape) }
}
