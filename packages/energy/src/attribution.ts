/**
 * Whose energy it was. No sensor sees an expert, so its share is modelled: moving a byte and doing an operation each have a price, and the
 * model's sum is rescaled to what was measured. How far the sum was off before that is reported, since it says how good the model is.
 */
import { checkInteger, checkNumber, checkOneOf, checkOptions, describe } from '@nexus/native'
import type { Measurement } from './model.js'

/** What one expert had to do in a window. */
export interface ExpertLoad {
  readonly tokens: number
  /** Bytes that had to be moved: weights and activations. */
  readonly bytes: number
  /** Floating-point operations. */
  readonly flops: number
}

/** The experts of a layer, for counting their work. */
export interface ExpertShape {
  readonly inputDim: number
  readonly hiddenDim: number
  /** @default inputDim */
  readonly outputDim?: number
  /** @default 'gated' */
  readonly kind?: 'two-layer' | 'three-layer' | 'gated'
  /** @default 'bf16' */
  readonly dtype?: 'f32' | 'bf16' | 'f16'
}

export interface AttributionOptions {
  /**
   * Price of a byte from device memory, in joules.
   * @default 1.16e-10 (an H200 reading memory: 4.65 TB/s at 7.2 GB/J, less 107 W of idle power)
   */
  readonly joulesPerByte?: number
  /**
   * Price of a floating-point operation, in joules.
   * @default 9e-13 (an H200's bf16 tensor work: about 620 TFLOP/s near its 700 W, less idle power)
   */
  readonly joulesPerFlop?: number
}

export interface ExpertShare {
  readonly expert: number
  readonly tokens: number
  /** What the model says: bytes × joulesPerByte + flops × joulesPerFlop. */
  readonly modelledJoules: number
  /** Of the sum over all experts; 0 where nobody did anything. */
  readonly share: number
  /** The share of what was measured; `null` where that is not known. */
  readonly joules: number | null
}

export interface Attribution {
  readonly experts: readonly ExpertShare[]
  readonly modelledJoules: number
  /** What was shared out: the active energy where the idle part is known, else all of it. */
  readonly basis: 'active' | 'total'
  readonly measuredJoules: number | null
  /** measured − modelled, before the parts were rescaled; and the same over measured. */
  readonly residualJoules: number | null
  readonly residualShare: number | null
  /** What no expert can be given: all of it when none had work, else 0. */
  readonly unattributedJoules: number | null
  /** Why the measured figures are `null`. */
  readonly reason: string | null
}

const dtypeBytes = { f32: 4, bf16: 2, f16: 2 } as const

/**
 * The work of each expert. For n tokens in `steps` steps in which it had any:
 *
 * - flops = 2 · n · W
 * - bytes = steps · W · size + n · (input + output) · size
 *
 * with W the expert's weights (gated: 2 · input · hidden + hidden · output; two layers: input · hidden + hidden · output;
 * three layers: with hidden · hidden besides). Weights are read once a step, however many tokens share them: this is why a cold expert is dear.
 * @param counts tokens per expert over the window
 * @param steps for each expert the steps in which it had tokens; without it, one step
 * @throws TypeError, RangeError naming the argument
 */
export function expertLoads(counts: ArrayLike<number>, shape: ExpertShape, steps?: ArrayLike<number>): ExpertLoad[] {
  checkOptions('shape', shape, ['inputDim', 'hiddenDim', 'outputDim', 'kind', 'dtype'])
  const input = checkInteger('shape.inputDim', shape.inputDim, 1)
  const hidden = checkInteger('shape.hiddenDim', shape.hiddenDim, 1)
  const output = checkInteger('shape.outputDim', shape.outputDim ?? input, 1)
  const kind = checkOneOf('shape.kind', shape.kind ?? 'gated', ['two-layer', 'three-layer', 'gated'])
  const size = dtypeBytes[checkOneOf('shape.dtype', shape.dtype ?? 'bf16', ['f32', 'bf16', 'f16'])]
  const extra = { 'two-layer': 0, 'three-layer': hidden * hidden, gated: input * hidden }[kind]
  const weights = input * hidden + hidden * output + extra
  if (steps !== undefined && steps.length !== counts.length) {
    throw new RangeError(`steps: expected ${counts.length} entries, as counts has, got ${steps.length}`)
  }
  return Array.from({ length: counts.length }, (_, e) => {
    const tokens = checkInteger(`counts[${e}]`, counts[e], 0)
    const active = steps === undefined ? Math.min(tokens, 1) : checkInteger(`steps[${e}]`, steps[e], 0)
    if (active > tokens || (tokens > 0 && active === 0)) {
      throw new RangeError(`steps[${e}]: expected 1 to ${tokens} steps for ${tokens} tokens, got ${active}`)
    }
    return { tokens, flops: 2 * tokens * weights, bytes: size * (active * weights + tokens * (input + output)) }
  })
}

/**
 * Shares a measured energy out among experts: share = m / Σm with m = bytes · joulesPerByte + flops · joulesPerFlop, and joules = share ·
 * measured. So the parts sum to what was measured, and when an expert's tokens double its share becomes m′ / (Σm − m + m′).
 * @throws TypeError, RangeError naming the argument
 */
export function attribute(
  loads: readonly ExpertLoad[],
  measurement: Pick<Measurement, 'joules' | 'activeJoules' | 'reason'>,
  options: AttributionOptions = {},
): Attribution {
  checkOptions('attribute', options, ['joulesPerByte', 'joulesPerFlop'])
  const perByte = checkNumber('joulesPerByte', options.joulesPerByte ?? 1.16e-10, 0)
  const perFlop = checkNumber('joulesPerFlop', options.joulesPerFlop ?? 9e-13, 0)
  if (!Array.isArray(loads)) throw new TypeError(`loads: expected an array, got ${describe(loads)}`)
  const modelled = loads.map((load, e) => {
    const bytes = checkNumber(`loads[${e}].bytes`, load.bytes, 0)
    const flops = checkNumber(`loads[${e}].flops`, load.flops, 0)
    checkNumber(`loads[${e}].tokens`, load.tokens, 0)
    return bytes * perByte + flops * perFlop
  })
  const sum = modelled.reduce((a, b) => a + b, 0)
  const basis = measurement.activeJoules === null ? 'total' : 'active'
  const measured = measurement.activeJoules ?? measurement.joules
  const residual = measured === null ? null : measured - sum
  return {
    experts: loads.map(({ tokens }, expert) => {
      const modelledJoules = modelled[expert] ?? 0
      const share = sum > 0 ? modelledJoules / sum : 0
      return { expert, tokens, modelledJoules, share, joules: measured === null ? null : share * measured }
    }),
    modelledJoules: sum,
    basis,
    measuredJoules: measured,
    residualJoules: residual,
    residualShare: residual === null || measured === null || measured === 0 ? null : residual / measured,
    unattributedJoules: measured === null ? null : sum > 0 ? 0 : measured,
    reason: measured === null ? (measurement.reason ?? 'the energy is not known') : null,
  }
}

/**
 * Tokens for each joule; `null` where the energy is not known, or 0.
 * @throws TypeError, RangeError when `tokens` is not a number of at least 0
 */
export function tokensPerJoule(tokens: number, measurement: Pick<Measurement, 'joules'>): number | null {
  checkNumber('tokens', tokens, 0)
  const { joules } = measurement
  return joules === null || joules <= 0 ? null : tokens / joules
}
