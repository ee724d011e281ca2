/**
 * From measured step times to a cost model. The form of the model stands in `cost.ts`; here its parameters are fitted to one shape on one device,
 * by least squares of the logarithms (a relative error counts the same in a short step and in a long one), with large errors weighed more, for what
 * has to hold is the largest error. How slices overlap and how rows are tiled are no numbers: each is tried, and the best fit wins.
 */
import { checkInteger, checkOptions } from '@nexus/native'
import type { CostModel } from '../cost.js'
import { type Curve, checkDevice, type DeviceDescription, h200, interpolate } from '../device.js'
import { type Agreement, agreement, agreementOf, predictRow } from './agreement.js'
import { type Fit, leastSquares } from './least-squares.js'
import {
  checkMeasurements,
  type MeasuredShape,
  rowsOf,
  type StepMeasurement,
  type StepMeasurements,
} from './measurements.js'
import { residualsOf } from './residuals.js'

/** What the fit found, beside the model that follows from it. */
export interface CalibrationParameters {
  /** Of the device's bandwidth curve: bytes a second reached, and SMs needed for it. */
  readonly bandwidthScale: number
  readonly bandwidthSms: number
  /** Of the device's rate on all SMs; and the power of the SMs with which it grows (1: in proportion). */
  readonly rateScale: number
  readonly rateExponent: number
  /** Of the bytes of an assignment's input and output. */
  readonly assignmentBytesScale: number
  readonly overheadUs: number
  readonly exposed: number
  readonly extraRows: number
  readonly stepUs: number
  readonly perSliceUs: number
  readonly perAssignmentUs: number
}

export interface CalibrateOptions {
  /**
   * The device whose curves are scaled.
   * @default h200
   */
  readonly device?: DeviceDescription
  /**
   * The shape to fit, where the file has several.
   * @default the only one
   */
  readonly shape?: string
}

export interface Calibration {
  readonly shape: string
  readonly cost: CostModel
  readonly parameters: CalibrationParameters
  /** With the rows that it was fitted to. */
  readonly agreement: Agreement
}

interface Parameter {
  readonly low: number
  readonly high: number
  /** Where nothing speaks for another value. */
  readonly neutral: number
}

// A parameter that the rows say nothing about stays where it is neutral.
const ranges: Readonly<Record<keyof CalibrationParameters, Parameter>> = {
  bandwidthScale: { low: 0.2, high: 1.5, neutral: 1 },
  bandwidthSms: { low: 0.6, high: 3, neutral: 1 },
  rateScale: { low: 0.02, high: 1.5, neutral: 0.8 },
  rateExponent: { low: 0.4, high: 1.4, neutral: 1 },
  assignmentBytesScale: { low: 0, high: 10, neutral: 1 },
  overheadUs: { low: 0, high: 10, neutral: 0 },
  exposed: { low: 0, high: 1, neutral: 0 },
  extraRows: { low: 0, high: 256, neutral: 0 },
  stepUs: { low: 0, high: 200, neutral: 0 },
  perSliceUs: { low: 0, high: 50, neutral: 0 },
  perAssignmentUs: { low: 0, high: 0.05, neutral: 0 },
}
const names = Object.keys(ranges) as (keyof CalibrationParameters)[]
/** Weight of a parameter's distance from neutral against a row's logarithm: decides only what the rows leave open. */
const PULL = 1e-3

const forms = (['slice', 'none'] as const).flatMap((overlap) =>
  ([1, 8, 16, 64, 128] as const).map((rowTile) => ({ overlap, rowTile })),
)
type Form = (typeof forms)[number]

// Where the search begins: a kernel near the device's limits, and a poor one.
const starts: readonly Partial<CalibrationParameters>[] = [
  { overheadUs: 0.1, exposed: 0.1, extraRows: 4, stepUs: 5, perSliceUs: 1, perAssignmentUs: 1e-4 },
  { bandwidthScale: 0.7, rateScale: 0.4, overheadUs: 0.5, exposed: 0.5, extraRows: 32, stepUs: 15, perSliceUs: 3 },
]

const toUnit = (values: Partial<CalibrationParameters>) =>
  names.map((name) => {
    const { low, high, neutral } = ranges[name]
    return ((values[name] ?? neutral) - low) / (high - low)
  })

function fromUnit(x: readonly number[]): CalibrationParameters {
  const values = {} as Record<keyof CalibrationParameters, number>
  for (const [i, name] of names.entries()) {
    const { low, high } = ranges[name]
    values[name] = low + (x[i] ?? 0) * (high - low)
  }
  return values
}

/** The model of a shape on a device with these parameters. */
function modelOf(device: DeviceDescription, shape: MeasuredShape, p: CalibrationParameters, form: Form): CostModel {
  const weights = shape.hiddenDim * (2 * shape.inputDim + shape.outputDim)
  const whole = interpolate(device.rate, device.sms)
  const rate: Curve =
    p.rateExponent === 1
      ? [{ sms: device.sms, perSecond: whole * p.rateScale }]
      : Array.from({ length: 8 }, (_, i) => {
          const sms = (device.sms * (i + 1)) / 8
          return { sms, perSecond: whole * p.rateScale * (sms / device.sms) ** p.rateExponent }
        })
  return {
    bandwidth: device.bandwidth.map(({ sms, perSecond }) => ({
      sms: sms * p.bandwidthSms,
      perSecond: perSecond * p.bandwidthScale,
    })),
    rate,
    weightBytes: shape.bytesPerValue * weights,
    assignmentBytes: p.assignmentBytesScale * shape.bytesPerValue * (shape.inputDim + shape.outputDim),
    assignmentFlop: 2 * weights,
    overheadUs: p.overheadUs,
    overlap: form.overlap,
    exposed: p.exposed,
    rowTile: form.rowTile,
    extraRows: p.extraRows,
    stepUs: p.stepUs,
    perSliceUs: p.perSliceUs,
    perAssignmentUs: p.perAssignmentUs,
  }
}

/** Rows by index, so that every so many can be left out. */
function fit(
  rows: readonly StepMeasurement[],
  device: DeviceDescription,
  shape: MeasuredShape,
): { cost: CostModel; parameters: CalibrationParameters } {
  const neutral = toUnit({})
  const residuals = (form: Form) => (x: readonly number[]) => {
    const cost = modelOf(device, shape, fromUnit(x), form)
    return residualsOf(rows, (row) => predictRow(cost, row), x, neutral, PULL)
  }
  const tried = forms.map((form) => {
    const fits = starts.map((start) => leastSquares(residuals(form), toUnit(start), 12))
    return { form, fit: fits.reduce((a, b) => (b.loss < a.loss ? b : a)) }
  })
  tried.sort((a, b) => a.fit.loss - b.fit.loss)
  let best: { form: Form; fit: Fit } | null = null
  for (const { form, fit: rough } of tried.slice(0, 3)) {
    const fine = leastSquares(residuals(form), rough.x, 60)
    if (best === null || fine.loss < best.fit.loss) best = { form, fit: fine }
  }
  const { form, fit: found } = best ?? { form: { overlap: 'slice', rowTile: 1 } as Form, fit: { x: neutral, loss: 0 } }
  const parameters = fromUnit(found.x)
  return { cost: modelOf(device, shape, parameters, form), parameters }
}

/** @internal What a calibration is of: checked, of one shape. */
export function prepare(measurements: StepMeasurements, options: CalibrateOptions | undefined, least: number) {
  const checked = checkMeasurements(measurements)
  const device = checkDevice('options.device', options?.device ?? h200)
  if (checked.sms !== device.sms) {
    throw new RangeError(`options.device: expected one of ${checked.sms} SMs as measured, got ${device.sms}`)
  }
  if (options?.shape === undefined && checked.shapes.length !== 1) {
    throw new RangeError(`options.shape: expected the name of one of ${checked.shapes.length} shapes, got undefined`)
  }
  const { shapes, rows } = options?.shape === undefined ? checked : rowsOf(checked, options.shape)
  const [shape] = shapes
  if (!shape || rows.length < least) {
    throw new RangeError(`measurements.rows: expected at least ${least} rows of the shape, got ${rows.length}`)
  }
  return { device, shape, rows }
}

/**
 * The cost model that says best what was measured of one shape: its curves (the device's, scaled), its overheads, how experts overlap. For use in
 * `predictStep`, `arrange`, a SliceManager and the simulator. Takes seconds.
 * @throws TypeError or RangeError that names what is wrong with the measurements or the options
 */
export function calibrate(measurements: StepMeasurements, options?: CalibrateOptions): Calibration {
  checkOptions('options', options, ['device', 'shape'])
  const { device, shape, rows } = prepare(measurements, options, 1)
  const { cost, parameters } = fit(rows, device, shape)
  return { shape: shape.name, cost, parameters, agreement: agreement(rows, cost) }
}

/**
 * The agreement with rows that a fit has not seen: the rows are dealt out to `folds` hands, and each hand is predicted by the fit to the
 * others.
 * @throws as {@link calibrate}
 */
export function crossValidate(
  measurements: StepMeasurements,
  options?: CalibrateOptions & {
    /**
     * 2 or more, at most as many as there are rows.
     * @default 4
     */
    readonly folds?: number
  },
): Agreement {
  checkOptions('options', options, ['device', 'shape', 'folds'])
  const { device, shape, rows } = prepare(measurements, options, 2)
  const folds = checkInteger('options.folds', options?.folds ?? Math.min(4, rows.length), 2, rows.length)
  const dealt = Array.from({ length: folds }, (_, fold) => {
    const { cost } = fit(
      rows.filter((_, i) => i % folds !== fold),
      device,
      shape,
    )
    const held = rows.filter((_, i) => i % folds === fold)
    return agreement(held, cost).rows
  })
  return agreementOf(rows.flatMap((_, i) => dealt[i % folds]?.[Math.floor(i / folds)] ?? []))
}
