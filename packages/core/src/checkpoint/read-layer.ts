/**
 * One MoE layer of a checkpoint folder as the options of a layer: what the configuration says, and its weights on the device,
 * streamed there from the files. The fused layer and the baseline are both made from it.
 */
import {
  checkInteger,
  checkOneOf,
  checkOptions,
  type DeviceSpec,
  describe,
  resolveDevice,
  type Stream,
  Tensor,
} from '@nexus/native'
import type { FloatDType } from '@nexus/router-kernels'
import type { MoELayerOptions } from '../options.js'
import { resolveScheduling, type SchedulingOptions, schedulingKeys } from '../scheduling/options.js'
import { type WeightLayout, weightLayouts } from '../weight-layout.js'
import { ModelConfig } from './config.js'
import { CheckpointDirectory } from './directory.js'
import { failure } from './failure.js'
import { familyOf } from './families.js'
import type { Family, LayerSpec } from './family.js'
import { defaultLimits, Filler, type FillLimits } from './fill.js'
import { type LayerPlan, planLayer, type Range, type Target } from './plan.js'

/** How far a load has come. */
export interface LoadProgress {
  /** The stored tensor that was worked on last. */
  readonly tensor: string
  /** Bytes, as stored, that are on the device. Never falls. */
  readonly bytesDone: number
  /** Bytes, as stored, of the whole layer. */
  readonly bytesTotal: number
}

/** Options of `MoELayer.fromCheckpoint`; how its steps are scheduled among them. */
export interface FromCheckpointOptions extends SchedulingOptions {
  /** Number of the decoder layer, from 0. @default the first that has experts */
  readonly layer?: number
  /** @default 'auto': cuda:0 where it can be used, else the CPU */
  readonly device?: DeviceSpec
  /** Of input, experts' weights and output. Stored weights are converted to it. @default 'f32' on the CPU, 'bf16' on CUDA */
  readonly dtype?: FloatDType
  /** Called after each chunk (a few MiB), and at the end with bytesDone = bytesTotal. What it throws ends the load. */
  readonly onProgress?: (progress: LoadProgress) => void
  /** Ends the load: it rejects with the signal's reason, and everything it allocated is freed. */
  readonly signal?: AbortSignal
  /** Where the layer's steps are queued. @default the device's default stream */
  readonly stream?: Stream
  /** See {@link MoELayerOptions.weightLayout}; the layer owns what it reads. @default 'auto' */
  readonly weightLayout?: WeightLayout
}

const optionKeys = [
  'layer',
  'device',
  'dtype',
  'onProgress',
  'signal',
  'stream',
  'weightLayout',
  ...schedulingKeys,
] as const

/** What a checkpoint folder holds, read from its configuration alone. */
export interface CheckpointInfo {
  /** The family's name in the table of families. */
  readonly family: string
  /** `model_type` of `config.json`. */
  readonly modelType: string
  /** Numbers of the decoder layers that have experts. */
  readonly moeLayers: readonly number[]
  /** Sizes and rules that all of them have. */
  readonly spec: LayerSpec
}

/**
 * Reads what a checkpoint is, without its weights.
 * @throws CheckpointError for a missing or malformed file; UnsupportedError for an unknown family
 */
export async function inspectCheckpoint(directory: string): Promise<CheckpointInfo> {
  checkDirectory(directory)
  const open = await CheckpointDirectory.open(directory)
  try {
    const { family, config } = identify(open)
    const moeLayers = family.moeLayers(config)
    return { family: family.name, modelType: config.modelType, moeLayers, spec: family.spec(config) }
  } finally {
    await open.close()
  }
}

/**
 * The options with which `MoELayer.create` (or the baseline) makes the layer; it adopts the weights.
 * @param limits sizes of the host buffers, for tests
 * @throws CheckpointError naming file and tensor; UnsupportedError for an unknown family or quantised weights; RangeError for a
 * layer without experts
 */
export async function readLayer(
  directory: string,
  options: FromCheckpointOptions = {},
  limits: FillLimits = defaultLimits,
): Promise<MoELayerOptions> {
  checkDirectory(directory)
  checkOptions('fromCheckpoint options', options, optionKeys)
  const { layer: asked, dtype: askedDtype, device: askedDevice, onProgress, signal, stream, ...others } = options
  const { weightLayout = 'auto', ...scheduling } = others
  // What is wrong with them is known before anything is read.
  resolveScheduling(scheduling)
  checkOneOf('weightLayout', weightLayout, weightLayouts)
  if (asked !== undefined) checkInteger('layer', asked, 0, Number.MAX_SAFE_INTEGER)
  if (askedDtype !== undefined) checkOneOf('dtype', askedDtype, ['f32', 'bf16', 'f16'])
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new TypeError(`onProgress must be a function, got ${describe(onProgress)}`)
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`signal must be an AbortSignal, got ${describe(signal)}`)
  }
  const device = resolveDevice(askedDevice ?? stream?.device ?? 'auto')
  const dtype = askedDtype ?? (device === 'cpu' ? 'f32' : 'bf16')
  signal?.throwIfAborted()

  const open = await CheckpointDirectory.open(directory)
  try {
    const { family, config } = identify(open)
    const spec = family.spec(config)
    const layer = chooseLayer(family.moeLayers(config), asked, family, config)
    const plan = await planLayer(open, family, spec, layer, dtype)
    const loader = new Loader(
      plan,
      { device, ...(stream ? { stream } : {}) },
      new Filler(limits, signal ?? null),
      onProgress,
    )
    const weights = await loader.load()
    const { router, shared, ...rest } = spec
    return {
      ...scheduling,
      ...rest,
      kind: 'gated',
      numExperts: router.numExperts,
      topK: router.topK,
      router,
      bias: plan.expertBiases !== null,
      shared: shared && { ...shared, gate: plan.sharedGate !== null },
      dtype,
      device,
      weights,
      adoptWeights: true,
      weightLayout,
      ...(stream ? { stream } : {}),
    }
  } finally {
    await open.close()
  }
}

function checkDirectory(directory: unknown): void {
  if (typeof directory !== 'string' || directory === '') {
    throw new TypeError(`directory must be the path of a checkpoint folder, got ${describe(directory)}`)
  }
}

function identify(open: CheckpointDirectory): { family: Family; config: ModelConfig } {
  const config = ModelConfig.from(open.config, open.configPath)
  return { family: familyOf(config), config }
}

function chooseLayer(
  moeLayers: readonly number[],
  asked: number | undefined,
  family: Family,
  config: ModelConfig,
): number {
  const [first] = moeLayers
  if (first === undefined) throw failure({ file: config.file }, `describes a ${family.name} model without an MoE layer`)
  if (asked === undefined) return first
  if (moeLayers.includes(asked)) return asked
  throw new RangeError(
    `layer must be one of the MoE layers ${ranges(moeLayers)} of this ${family.name} model, got ${asked}`,
  )
}

/** `[3, 4, 5, 8]` → `3-5, 8`. */
function ranges(numbers: readonly number[]): string {
  const runs: [number, number][] = []
  for (const n of numbers) {
    const last = runs.at(-1)
    if (last && last[1] === n - 1) last[1] = n
    else runs.push([n, n])
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(', ')
}

interface Placement {
  readonly device: DeviceSpec
  readonly stream?: Stream
}

/** Allocates the tensors of a plan and fills them one after the other. */
class Loader {
  readonly #plan: LayerPlan
  readonly #place: Placement
  readonly #filler: Filler
  readonly #onProgress: FromCheckpointOptions['onProgress']
  readonly #made: Tensor[] = []
  readonly #bytesTotal: number
  #bytesDone = 0

  constructor(plan: LayerPlan, place: Placement, filler: Filler, onProgress: FromCheckpointOptions['onProgress']) {
    this.#plan = plan
    this.#place = place
    this.#filler = filler
    this.#onProgress = onProgress
    this.#bytesTotal = storedBytes(plan)
  }

  async load(): Promise<NonNullable<MoELayerOptions['weights']>> {
    const { router, routerBias, selectBias, experts, expertBiases, shared, sharedGate } = this.#plan
    try {
      return {
        router: await this.#one(router),
        routerBias: routerBias && (await this.#one(routerBias)),
        selectBias: selectBias && (await this.#one(selectBias)),
        experts: await this.#all(experts),
        ...(expertBiases ? { expertBiases: await this.#all(expertBiases) } : {}),
        ...(shared ? { shared: await this.#all(shared) } : {}),
        ...(sharedGate ? { sharedGate: await this.#one(sharedGate) } : {}),
      }
    } catch (error) {
      for (const tensor of this.#made) tensor.dispose()
      throw error
    }
  }

  async #one(target: Target): Promise<Tensor> {
    const tensor = Tensor.empty(target.shape, { dtype: target.dtype, ...this.#place })
    this.#made.push(tensor)
    await this.#filler.fill(tensor, target, (name, bytes) => {
      this.#bytesDone += bytes
      this.#onProgress?.({ tensor: name, bytesDone: this.#bytesDone, bytesTotal: this.#bytesTotal })
    })
    return tensor
  }

  async #all(targets: readonly Target[]): Promise<Tensor[]> {
    const tensors: Tensor[] = []
    for (const target of targets) tensors.push(await this.#one(target))
    return tensors
  }
}

function storedBytes(plan: LayerPlan): number {
  const bytes = ({ elements, dtype }: Range) => elements * (dtype === 'f32' ? 4 : 2)
  const { router, routerBias, selectBias, experts, expertBiases, shared, sharedGate } = plan
  const targets = [router, routerBias, selectBias, ...experts, ...(expertBiases ?? []), ...(shared ?? []), sharedGate]
  return targets
    .flatMap((target) => target?.copies ?? [])
    .map((copy) => (copy.kind === 'interleave' ? bytes(copy.gate) + bytes(copy.up) : bytes(copy.from)))
    .reduce((sum, n) => sum + n, 0)
}
