/**
 * The weights of a layer: given, or made on the device from a seed. One set can serve several layers (the baseline beside the fused one),
 * so it counts its users and gives back what it owns when the last one is gone.
 */
import { checkOptions, DisposedError, type DType, describe, isTensor, type Stream, Tensor } from '@nexus/native'
import type { FloatDType } from '@nexus/router-kernels'
import { checkSelectBias, linearShapes } from '@nexus/router-kernels/internal'
import type { LayerConfig } from './options.js'

/**
 * Weights of a layer. A Float32Array is converted to the dtype; a tensor of another dtype or device is converted too, one that fits is
 * used as it is, without a copy. Matrices are torch's Linear layout, [rows, columns], `columns` contiguous.
 */
export interface LayerWeights {
  /** [numExperts, inputDim], kept in f32 or in the layer's dtype. @default null: every step is given its logits */
  readonly router?: Tensor | Float32Array | null
  /** f32 [numExperts], added to the logits that the layer computes. @default null */
  readonly routerBias?: Tensor | Float32Array | null
  /** f32 [numExperts], added to the scores for the choice only. @default null */
  readonly selectBias?: Tensor | Float32Array | null
  /**
   * One [numExperts, rows, columns] per linear layer. The first one of a gated expert is [numExperts, 2·hiddenDim, inputDim], gate i in row
   * 2i and up i in row 2i + 1.
   */
  readonly experts: readonly (Tensor | Float32Array)[]
  /** One f32 [numExperts, rows] or `null` per linear layer. @default no biases */
  readonly expertBiases?: readonly (Tensor | Float32Array | null)[]
  /** One [rows, columns] per linear layer of the shared expert; needed with `shared`. */
  readonly shared?: readonly (Tensor | Float32Array)[]
  /** One f32 [rows] or `null` per linear layer. @default no biases */
  readonly sharedBiases?: readonly (Tensor | Float32Array | null)[]
  /** [inputDim]; needed with `shared.gate`. */
  readonly sharedGate?: Tensor | Float32Array
}

const weightKeys = [
  'router',
  'routerBias',
  'selectBias',
  'experts',
  'expertBiases',
  'shared',
  'sharedBiases',
  'sharedGate',
] as const satisfies readonly (keyof LayerWeights)[]

type Given = Tensor | Float32Array
type Maybe = Tensor | null

/** A layer's weights as device tensors of the right dtype. */
export class WeightSet {
  router: Maybe = null
  routerBias: Maybe = null
  selectBias: Maybe = null
  experts: Tensor[] = []
  expertBiases: Maybe[] = []
  shared: Tensor[] = []
  sharedBiases: Maybe[] = []
  sharedGate: Maybe = null
  readonly #owned: Tensor[] = []
  #parent: WeightSet | null = null
  #users = 1

  /** The set disposes of `tensor` with itself. */
  own(tensor: Tensor): Tensor {
    this.#owned.push(tensor)
    return tensor
  }

  owns(tensor: Tensor): boolean {
    return this.#owned.includes(tensor)
  }

  /** Whether the weights of an MLP's linear layers lie in panels (weight-layout.ts): all of them do, or none. */
  get inPanels(): { readonly experts: boolean; readonly shared: boolean } {
    const lie = (list: readonly Tensor[]) => list.some((tensor) => tensorsInPanels.has(tensor))
    return { experts: lie(this.experts), shared: lie(this.shared) }
  }

  /** A set of the same tensors that takes over one use of this one. */
  derived(): WeightSet {
    const set = new WeightSet()
    const { router, routerBias, selectBias, sharedGate } = this
    Object.assign(set, { router, routerBias, selectBias, sharedGate })
    for (const name of ['experts', 'expertBiases', 'shared', 'sharedBiases'] as const)
      set[name].push(...(this[name] as Tensor[]))
    set.#parent = this
    return set
  }

  get bytes(): number {
    const single = [this.router, this.routerBias, this.selectBias, this.sharedGate]
    const all = [...single, ...this.experts, ...this.expertBiases, ...this.shared, ...this.sharedBiases]
    return all.reduce((sum, tensor) => sum + (tensor?.byteLength ?? 0), 0)
  }

  retain(): this {
    if (this.#users === 0) throw new DisposedError('these weights were disposed of with their last layer')
    this.#users++
    return this
  }

  release(): void {
    this.#users--
    if (this.#users > 0) return
    for (const tensor of this.#owned) tensor.dispose()
    this.#parent?.release()
  }
}

interface Place {
  readonly config: LayerConfig
  readonly stream: Stream
}

/** Tensors whose elements lie in panels (weight-layout.ts): not weights to be given to another layer. */
export const tensorsInPanels = new WeakSet<Tensor>()

/** Normally distributed weights of scale 1/√(fan-in), enqueued on the stream. */
export function randomWeights({ config, stream }: Place): WeightSet {
  const set = new WeightSet()
  const { device, seed, experts, rule, shared } = config
  let made = 0
  const randn = (shape: number[], dtype: FloatDType, fanIn: number): Tensor => {
    // Each tensor has a generator of its own, and neighbouring seeds share none: 32 numbers each.
    const random = { seed: seed * 32 + made++, scale: 1 / Math.sqrt(fanIn) }
    return set.own(Tensor.randn(shape, { dtype, device, stream, ...random }))
  }
  const { numExperts, inputDim, dtype } = experts
  try {
    set.router = randn([rule.numExperts, inputDim], dtype, inputDim)
    for (const { rows, columns } of linearShapes(experts)) {
      set.experts.push(randn([numExperts, rows, columns], dtype, columns))
      set.expertBiases.push(config.bias ? randn([numExperts, rows], 'f32', columns) : null)
    }
    if (shared !== null) {
      for (const { rows, columns } of linearShapes(shared.mlp)) {
        set.shared.push(randn([rows, columns], dtype, columns))
        set.sharedBiases.push(shared.bias ? randn([rows], 'f32', columns) : null)
      }
      set.sharedGate = shared.gate ? randn([inputDim], dtype, inputDim) : null
    }
  } catch (error) {
    set.release()
    throw error
  }
  return set
}

/**
 * The given weights, checked and converted where they have to be.
 * @throws TypeError or RangeError naming the weight, such as `weights.experts[1]`
 */
export async function givenWeights(
  { config, stream }: Place,
  weights: LayerWeights,
  {
    adopt,
    biasAsked,
  }: { readonly adopt: boolean /** `bias: true` was written, not taken by default. */; readonly biasAsked: boolean },
): Promise<WeightSet> {
  const set = new WeightSet()
  if (adopt) for (const tensor of tensorsIn(weights)) set.own(tensor)
  const place = (name: string, value: Given, shape: number[], dtype: DType): Promise<Tensor> =>
    placed(set, `weights.${name}`, value, shape, dtype, { config, stream })
  const { experts, rule, shared } = config
  const { numExperts, inputDim, dtype } = experts
  try {
    checkOptions('weights', weights, weightKeys)
    checkSelectBias('weights.selectBias', weights.selectBias, rule)
    const { router = null } = weights
    if (router !== null) {
      const keepsOwn = isTensor(router) && router.dtype === dtype
      set.router = await place('router', router, [rule.numExperts, inputDim], keepsOwn ? dtype : 'f32')
    }
    for (const name of ['routerBias', 'selectBias'] as const) {
      const value = weights[name] ?? null
      if (value !== null) set[name] = await place(name, value, [rule.numExperts], 'f32')
    }
    const shapes = linearShapes(experts)
    const expertBiases = biasList('expertBiases', weights.expertBiases, shapes.length, biasAsked)
    checkList('experts', weights.experts, shapes.length)
    for (const [i, { rows, columns }] of shapes.entries()) {
      set.experts.push(await place(`experts[${i}]`, at(weights.experts, i), [numExperts, rows, columns], dtype))
      const b = expertBiases[i] ?? null
      set.expertBiases.push(b && (await place(`expertBiases[${i}]`, b, [numExperts, rows], 'f32')))
    }
    if (shared === null) {
      for (const name of ['shared', 'sharedBiases', 'sharedGate'] as const) {
        if (weights[name] !== undefined) throw new TypeError(`weights.${name} needs the option shared, which is null`)
      }
      return set
    }
    const sharedShapes = linearShapes(shared.mlp)
    const sharedBiases = biasList('sharedBiases', weights.sharedBiases, sharedShapes.length, shared.bias)
    const sharedWeights = checkList('shared', weights.shared, sharedShapes.length)
    for (const [i, { rows, columns }] of sharedShapes.entries()) {
      set.shared.push(await place(`shared[${i}]`, at(sharedWeights, i), [rows, columns], dtype))
      const b = sharedBiases[i] ?? null
      set.sharedBiases.push(b && (await place(`sharedBiases[${i}]`, b, [rows], 'f32')))
    }
    const { sharedGate } = weights
    if (shared.gate !== (sharedGate !== undefined)) {
      throw new TypeError(`weights.sharedGate must be given exactly with shared.gate, which is ${shared.gate}`)
    }
    if (sharedGate !== undefined) set.sharedGate = await place('sharedGate', sharedGate, [inputDim], dtype)
    return set
  } catch (error) {
    set.release()
    throw error
  }
}

/** Every tensor that the caller put into `weights`, whatever else is wrong with them. */
function tensorsIn(weights: LayerWeights): Tensor[] {
  return Object.values(weights ?? {})
    .flat()
    .filter((value) => isTensor(value))
}

function at(list: readonly Given[], i: number): Given {
  const value = list[i]
  if (value === undefined) throw new RangeError(`expected an entry ${i} in a list of ${list.length}`)
  return value
}

function checkList<T>(name: string, list: readonly T[] | undefined, length: number): readonly T[] {
  if (!Array.isArray(list)) throw new TypeError(`weights.${name} must be an array, got ${describe(list)}`)
  if (list.length !== length) {
    throw new RangeError(`weights.${name} must have one entry per linear layer (${length}), got ${list.length}`)
  }
  return list
}

function biasList(name: string, list: readonly (Given | null)[] | undefined, length: number, wanted: boolean) {
  if (list !== undefined) return checkList(name, list, length)
  if (wanted) throw new TypeError(`weights.${name} must be given where bias is true`)
  return []
}

/** One weight on the device, in the dtype; a tensor's shape may have further dimensions of size 1 in front. */
async function placed(
  set: WeightSet,
  name: string,
  value: Given,
  shape: number[],
  dtype: DType,
  { config, stream }: Place,
) {
  const { device } = config
  const size = shape.reduce((a, b) => a * b, 1)
  if (value instanceof Float32Array) {
    if (value.length !== size) {
      throw new RangeError(`${name} must have ${size} elements ([${shape.join(', ')}]), got ${value.length}`)
    }
    const tensor = set.own(Tensor.empty(shape, { dtype, device, stream }))
    await tensor.write(value)
    return tensor
  }
  if (!isTensor(value)) throw new TypeError(`${name} must be a Tensor or a Float32Array, got ${describe(value)}`)
  if (value.dtype === 'i32') throw new TypeError(`${name} must have dtype f32, bf16 or f16, got i32`)
  const dims = [...value.shape]
  while (dims.length > shape.length && dims[0] === 1) dims.shift()
  if (dims.length !== shape.length || dims.some((d, i) => d !== shape[i])) {
    throw new RangeError(`${name} must have shape [${shape.join(', ')}], got [${value.shape.join(', ')}]`)
  }
  if (tensorsInPanels.has(value)) {
    throw new TypeError(`${name} is in panels since a layer adopted it; share that layer's weights by weightsFrom`)
  }
  if (value.dtype === dtype && value.device === device) return value
  return set.own(await value.to({ dtype, device }))
}
