/**
 * The expert MLPs: which kinds there are, the shapes of their weights, and their native descriptor. Shared by `GroupedExperts` and by
 * the layer, so that a kind or an activation is added in one place.
 */
import { checkInteger, checkNumber, checkOneOf, type DType } from '@nexus/native'
import { dtypeCode, type RawMlpDesc } from './native.js'

/**
 * `two-layer`: y = W₂ act(W₁x + b₁) + b₂. `three-layer`: y = W₃ relu(W₂ relu(W₁x + b₁) + b₂) + b₃. `gated`: y = W₂ glu(W₁x + b₁) + b₂,
 * where W₁ has 2·hiddenDim rows, gate and up interleaved.
 */
export type MlpKind = 'two-layer' | 'three-layer' | 'gated'
/** Elementwise activations of `two-layer` (`three-layer` takes `relu`). `gelu` is exact, with erf. */
export type PlainActivation = 'relu' | 'gelu' | 'gelu-tanh' | 'silu'
/**
 * Activations of `gated`: silu, gelu, gelu-tanh or relu of the gate, times up. `clamped-swiglu` is GPT-OSS's: gate ≤ limit, up in
 * ±limit, gate·σ(alpha·gate)·(up + 1).
 */
export type GatedActivation = 'swiglu' | 'geglu' | 'geglu-tanh' | 'reglu' | 'clamped-swiglu'
export type Activation = PlainActivation | GatedActivation

/** Numbers of `Epilogue` in kernels/include/nexus/experts.h. */
export const epilogueCode = {
  relu: 1,
  gelu: 2,
  'gelu-tanh': 3,
  silu: 4,
  swiglu: 16,
  geglu: 17,
  'geglu-tanh': 18,
  reglu: 19,
  'clamped-swiglu': 20,
} as const satisfies Record<Activation, number>

const kinds = ['two-layer', 'three-layer', 'gated'] as const
const activationsOf = {
  'two-layer': ['relu', 'gelu', 'gelu-tanh', 'silu'],
  'three-layer': ['relu'],
  gated: ['swiglu', 'geglu', 'geglu-tanh', 'reglu', 'clamped-swiglu'],
} as const satisfies Record<MlpKind, readonly Activation[]>
/** The activation of a kind when none is named. */
export const defaultActivation = {
  'two-layer': 'silu',
  'three-layer': 'relu',
  gated: 'swiglu',
} as const satisfies Record<MlpKind, Activation>

const maxDim = 2 ** 31 - 1
/** A gated layer has twice as many rows. */
const maxHiddenDim = 2 ** 30 - 1
/** The native descriptors hold float32. */
export const maxFloat = (2 - 2 ** -23) * 2 ** 127
const floatDtypes: readonly FloatDType[] = ['f32', 'bf16', 'f16']
export type FloatDType = 'f32' | 'bf16' | 'f16'

/** An MLP's shape and rule, checked and with every default filled in. */
export interface MlpSpec {
  readonly kind: MlpKind
  readonly activation: Activation
  readonly limit: number
  readonly alpha: number
  readonly numExperts: number
  readonly inputDim: number
  readonly hiddenDim: number
  readonly outputDim: number
  readonly dtype: FloatDType
}

/** @throws TypeError or RangeError naming the option, prefixed by `prefix` (such as `shared.`). */
export function checkMlpSpec(spec: MlpSpec, prefix = ''): MlpSpec {
  checkOneOf(`${prefix}kind`, spec.kind, kinds)
  checkOneOf(`${prefix}activation`, spec.activation, activationsOf[spec.kind])
  checkNumber(`${prefix}limit`, spec.limit, 0, maxFloat)
  checkNumber(`${prefix}alpha`, spec.alpha, -maxFloat, maxFloat)
  checkInteger(`${prefix}inputDim`, spec.inputDim, 1, maxDim)
  checkInteger(`${prefix}hiddenDim`, spec.hiddenDim, 1, maxHiddenDim)
  checkInteger(`${prefix}outputDim`, spec.outputDim, 1, maxDim)
  checkFloatDType(`${prefix}dtype`, spec.dtype)
  return spec
}

export function checkFloatDType(name: string, dtype: DType): asserts dtype is FloatDType {
  checkOneOf(name, dtype, floatDtypes)
}

/** One linear layer of the MLP: its matrix is [numExperts, rows, columns], its bias [numExperts, rows]. */
export interface LinearShape {
  readonly rows: number
  readonly columns: number
}

/** The linear layers of an MLP in order: two, or three for `three-layer`. */
export function linearShapes(spec: MlpSpec): LinearShape[] {
  const { inputDim, hiddenDim, outputDim } = spec
  const last = { rows: outputDim, columns: hiddenDim }
  switch (spec.kind) {
    case 'two-layer':
      return [{ rows: hiddenDim, columns: inputDim }, last]
    case 'three-layer':
      return [{ rows: hiddenDim, columns: inputDim }, { rows: hiddenDim, columns: hiddenDim }, last]
    case 'gated':
      return [{ rows: 2 * hiddenDim, columns: inputDim }, last]
  }
}

export function mlpDesc(spec: MlpSpec): RawMlpDesc {
  return {
    dtype: dtypeCode[spec.dtype],
    kind: kinds.indexOf(spec.kind),
    activation: epilogueCode[spec.activation],
    limit: spec.limit,
    alpha: spec.alpha,
    experts: spec.numExperts,
    input: spec.inputDim,
    hidden: spec.hiddenDim,
    output: spec.outputDim,
  }
}
