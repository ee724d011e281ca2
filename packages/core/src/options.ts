/**
 * The options of a layer, and what becomes of them: a configuration in which every default is filled in and every value was checked, as plain
 * data. Both layers, the fused one and the baseline, are built from it.
 */
import {
  checkInteger,
  checkOneOf,
  checkOptions,
  type DeviceName,
  type DeviceSpec,
  describe,
  requireOptions,
  resolveDevice,
  type Stream,
} from '@nexus/native'
import type { Activation, CombineMode, FloatDType, MlpKind, MlpSpec, RouterRule } from '@nexus/router-kernels'
import {
  checkMlpSpec,
  combineModes,
  defaultActivation,
  routerDesc,
  routerRuleKeys,
} from '@nexus/router-kernels/internal'
import type { MoELayer } from './layer.js'
import { type Determinism, determinisms, type SchedulingOptions, schedulingKeys } from './scheduling/options.js'
import { type WeightLayout, weightLayouts } from './weight-layout.js'
import type { LayerWeights } from './weights.js'

/** A dense MLP of the experts' kind and activation through which every token goes; its output is added to theirs. */
export interface SharedExpertOptions {
  readonly hiddenDim: number
  /** Weigh it by σ(x·w) (Qwen2-MoE, Qwen3-Next). @default false */
  readonly gate?: boolean
  /** Random weights only: give its linear layers biases. @default false */
  readonly bias?: boolean
}

/** Options of {@link MoELayer.create}. Tensors are row-major, [tokens, columns]. */
export interface MoELayerOptions extends LayerOptions, SchedulingOptions {
  /**
   * Share this layer's weights, which are then those of both until the last of them is disposed of. Shapes, dtype, device and shared expert
   * must be that layer's; `weights`, `adoptWeights` and `weightLayout` are not given. @default weights of its own
   */
  readonly weightsFrom?: MoELayer
  /**
   * How the linear layers' weights lie in memory; the output's bytes are the same. 'rows': as they are given. 'panels': in the order in which
   * the CUDA kernels read them, in place where the layer owns them (made from arrays, from a checkpoint, random or adopted), else in copies.
   * What an adopted tensor holds is then the layer's affair. 'auto': panels where the layer owns the weights and the device's kernels are faster
   * so (compute capability 9.0; bf16 and f16, columns in multiples of 64). @default 'auto'
   */
  readonly weightLayout?: WeightLayout
}

/** What a layer computes, on which device; the same for the layer and its baseline. */
export interface LayerOptions {
  /** Columns of the input. */
  readonly inputDim: number
  /** Inner width of an expert; of a gated one the width after the gate. */
  readonly hiddenDim: number
  /** Columns of an expert's output. @default inputDim */
  readonly outputDim?: number
  /** 1 to 1024. */
  readonly numExperts: number
  /** Experts per token: 1 to 32, at most `numExperts`. */
  readonly topK: number
  /** @default 'gated' */
  readonly kind?: MlpKind
  /** @default by kind: 'swiglu' for gated, 'relu' for three-layer, 'silu' for two-layer */
  readonly activation?: Activation
  /** Clamp of 'clamped-swiglu'. @default 7 */
  readonly limit?: number
  /** Slope of 'clamped-swiglu'. @default 1.702 */
  readonly alpha?: number
  /** Random weights only: give the experts' linear layers biases. @default false; true for 'three-layer' */
  readonly bias?: boolean
  /**
   * The routing rule: its steps, or a preset such as `routers.mixtral({ numExperts, topK })`, whose counts must be the layer's.
   * @default softmax over all experts, the k largest, renormalised
   */
  readonly router?: Partial<RouterRule>
  /** The routing weight scales the expert's input, and the rows are summed with weight 1 (Llama-4). @default false */
  readonly scaleInput?: boolean
  /** 'concat' lays a token's k weighted rows side by side: [tokens, topK·outputDim]. @default 'weighted-sum' */
  readonly combine?: CombineMode
  /** With 'weighted-sum' only. @default null: none */
  readonly shared?: SharedExpertOptions | null
  /** Of input, experts' weights and output; sums are float32. @default 'f32' on the CPU, 'bf16' on CUDA */
  readonly dtype?: FloatDType
  /** @default 'auto': cuda:0 where it can be used, else the CPU */
  readonly device?: DeviceSpec
  /** Of the random weights, 0 to 2^32 - 1: the same seed gives the same bits on every device. @default 0 */
  readonly seed?: number
  /** @default random, normal with scale 1/√(fan-in) */
  readonly weights?: LayerWeights | null
  /** The layer disposes of the tensors in `weights` with itself (also when `create` rejects). @default false */
  readonly adoptWeights?: boolean
  /** Where its steps are queued. @default the device's default stream */
  readonly stream?: Stream
}

/** The checked configuration of a layer, every default filled in: plain data. */
export interface LayerConfig {
  readonly experts: MlpSpec
  readonly bias: boolean
  readonly rule: RouterRule
  readonly scaleInput: boolean
  readonly combine: CombineMode
  readonly shared: { readonly mlp: MlpSpec; readonly gate: boolean; readonly bias: boolean } | null
  readonly device: DeviceName
  readonly seed: number
  readonly deterministic: Determinism
}

export const layerOptionKeys = [
  'inputDim',
  'hiddenDim',
  'outputDim',
  'numExperts',
  'topK',
  'kind',
  'activation',
  'limit',
  'alpha',
  'bias',
  'router',
  'scaleInput',
  'combine',
  'shared',
  'dtype',
  'device',
  'seed',
  'weights',
  'adoptWeights',
  'stream',
] as const satisfies readonly (keyof LayerOptions)[]

function checkFlag(name: string, value: unknown): void {
  if (typeof value !== 'boolean') throw new TypeError(`${name} must be a boolean, got ${describe(value)}`)
}

/**
 * Checks the options and fills in the defaults.
 * @throws TypeError or RangeError naming the option
 * @throws UnsupportedError when the device cannot be used
 */
export function resolveOptions(options: MoELayerOptions): LayerConfig {
  requireOptions('MoELayer options', options, [...layerOptionKeys, ...schedulingKeys, 'weightsFrom', 'weightLayout'])
  const { inputDim, hiddenDim, numExperts, kind = 'gated', limit = 7, alpha = 1.702, seed = 0 } = options
  const { scaleInput = false, combine = 'weighted-sum', bias = kind === 'three-layer' } = options
  const rule = resolveRule(options)
  checkOneOf('combine', combine, combineModes)
  for (const [name, flag] of [
    ['bias', bias],
    ['scaleInput', scaleInput],
    ['adoptWeights', options.adoptWeights ?? false],
  ] as const) {
    checkFlag(name, flag)
  }
  checkInteger('seed', seed, 0, 2 ** 32 - 1)
  checkOneOf('weightLayout', options.weightLayout ?? 'auto', weightLayouts)
  const device = resolveDevice(options.device ?? options.stream?.device ?? 'auto')
  if (options.stream !== undefined && options.stream.device !== device) {
    throw new RangeError(`stream must be on device ${device}, got a stream on ${options.stream.device}`)
  }
  const experts = checkMlpSpec({
    kind,
    activation: options.activation ?? defaultActivation[kind],
    limit,
    alpha,
    numExperts,
    inputDim,
    hiddenDim,
    outputDim: options.outputDim ?? inputDim,
    dtype: options.dtype ?? (device === 'cpu' ? 'f32' : 'bf16'),
  })
  const deterministic = checkOneOf('deterministic', options.deterministic ?? 'run-to-run', determinisms)
  const shared = resolveShared(options, experts, combine)
  return { experts, bias, rule, scaleInput, combine, shared, device, seed, deterministic }
}

function resolveRule(options: MoELayerOptions): RouterRule {
  const { numExperts, topK, router = {} } = options
  checkOptions('router', router, routerRuleKeys)
  const counts = { numExperts, topK }
  for (const name of ['numExperts', 'topK'] as const) {
    if (router[name] !== undefined && router[name] !== counts[name]) {
      throw new RangeError(
        `router.${name} must be the layer's ${name} (${counts[name]}), got ${describe(router[name])}`,
      )
    }
  }
  const rule = { ...router, ...counts }
  routerDesc(rule)
  return rule
}

function resolveShared(options: MoELayerOptions, experts: MlpSpec, combine: CombineMode): LayerConfig['shared'] {
  const shared = options.shared ?? null
  if (shared === null) return null
  checkOptions('shared', shared, ['hiddenDim', 'gate', 'bias'])
  if (combine === 'concat') throw new TypeError("shared must be null with combine 'concat', got an object")
  const { gate = false, bias = false } = shared
  checkFlag('shared.gate', gate)
  checkFlag('shared.bias', bias)
  const mlp = checkMlpSpec({ ...experts, numExperts: 1, hiddenDim: shared.hiddenDim }, 'shared.')
  return { mlp, gate, bias }
}

/** Columns of the layer's output. */
export function outputWidth(config: LayerConfig): number {
  return config.experts.outputDim * (config.combine === 'concat' ? config.rule.topK : 1)
}
