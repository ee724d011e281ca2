/**
 * From a family's row, a configuration and a folder to the list of copies that fill one layer's weights. Everything that can be
 * wrong with a checkpoint is found here, before a byte of a weight is read or a tensor allocated: missing, surplus, quantised
 * and misshapen tensors.
 */
import { type DType, UnsupportedError } from '@nexus/native'
import type { CheckpointDirectory, StoredTensor } from './directory.js'
import { failure, shown } from './failure.js'
import type { ExpertTensors, Family, LayerSpec } from './family.js'

/** dtypes that weights are stored in. */
export type DiskDType = 'f32' | 'bf16' | 'f16'

/** `elements` consecutive elements of a stored tensor, from element `first` on. */
export interface Range {
  readonly stored: StoredTensor
  readonly dtype: DiskDType
  readonly first: number
  readonly elements: number
}

/**
 * One step of filling a target, from element `at` of it on:
 * - `copy`: the range as it is
 * - `interleave`: row i of `gate` goes to row 2i, row i of `up` to row 2i + 1; rows have `columns` elements
 * - `transpose`: the range is a matrix of `rows` × `columns`; its columns become rows. With `blocks` the first half of the
 *   columns are gates and the second half ups, which end up alternating
 */
export type Copy =
  | { readonly kind: 'copy'; readonly at: number; readonly from: Range }
  | {
      readonly kind: 'interleave'
      readonly at: number
      readonly gate: Range
      readonly up: Range
      readonly columns: number
    }
  | {
      readonly kind: 'transpose'
      readonly at: number
      readonly from: Range
      readonly columns: number
      readonly blocks: boolean
    }

/** A tensor of the layer and what fills it. */
export interface Target {
  readonly shape: readonly number[]
  readonly dtype: DType
  readonly copies: readonly Copy[]
}

/** The tensors of one layer, as `MoELayer.create` takes them in `weights`. */
export interface LayerPlan {
  readonly router: Target
  readonly routerBias: Target | null
  readonly selectBias: Target | null
  readonly experts: readonly Target[]
  readonly expertBiases: readonly Target[] | null
  readonly shared: readonly Target[] | null
  readonly sharedGate: Target | null
}

const diskDTypes: ReadonlyMap<string, DiskDType> = new Map([
  ['F32', 'f32'],
  ['BF16', 'bf16'],
  ['F16', 'f16'],
])

/** Where the layers of a language model are: alone, as a part of a composed model, or saved without its head. */
const prefixes = ['model.', 'model.language_model.', 'language_model.model.', 'language_model.', '']

/** Endings of what quantised checkpoints store beside or instead of a weight (MXFP4, block FP8, FP8, GPTQ/AWQ, packed). */
const quantised = /(_blocks|_scales|scale_inv|weight_scale|\.qweight|\.qzeros|\.scales|\.weight_packed)$/

/**
 * Plans layer `layer` in `dtype`.
 * @throws CheckpointError naming file and tensor; UnsupportedError for quantised weights
 */
export async function planLayer(
  directory: CheckpointDirectory,
  family: Family,
  spec: LayerSpec,
  layer: number,
  dtype: DiskDType,
): Promise<LayerPlan> {
  const { base, router } = findBlock(directory, family, layer)
  refuseQuantised(directory, family, base)
  const { inputDim: h, hiddenDim: i } = spec
  const e = spec.router.numExperts
  const block = new Block(directory, base)
  const { tensors } = family

  const routerWeight = await block.range(router, [[e, h]])
  const selectBias = tensors.selectBias?.find((name) => directory.has(base + name)) ?? tensors.selectBias?.[0]
  const plan: LayerPlan = {
    // Never rounded: a router in another dtype than the layer's stays exact in f32, because rounding it changes choices.
    router: whole([e, h], routerWeight.dtype === dtype ? dtype : 'f32', routerWeight),
    routerBias: tensors.routerBias ? whole([e], 'f32', await block.range(tensors.routerBias, [[e]])) : null,
    selectBias: selectBias ? whole([e], 'f32', await block.range(selectBias, [[e], [1, e]])) : null,
    ...(await planExperts(block, chooseExperts(directory, family, base), { e, h, i }, dtype)),
    shared: spec.shared ? await planShared(block, `${tensors.shared}.`, spec.shared.hiddenDim, h, dtype) : null,
    sharedGate: tensors.sharedGate ? whole([h], dtype, await block.range(tensors.sharedGate, [[1, h], [h]])) : null,
  }
  block.refuseSurplus(family.name)
  return plan
}

/** The tensors of one block; remembers which were asked for. */
class Block {
  readonly #directory: CheckpointDirectory
  readonly #base: string
  readonly #used = new Set<string>()

  constructor(directory: CheckpointDirectory, base: string) {
    this.#directory = directory
    this.#base = base
  }

  /** A whole tensor, which must have one of `shapes`. */
  async range(name: string, shapes: readonly (readonly number[])[]): Promise<Range> {
    const tensor = this.#base + name
    this.#used.add(tensor)
    const stored = await this.#directory.find(tensor)
    const { entry } = stored
    const place = { file: stored.file.path, tensor }
    const dtype = diskDTypes.get(entry.dtype)
    if (dtype === undefined) {
      if (/^(F[468]|[IU]8)(_|$)/.test(entry.dtype)) {
        throw new UnsupportedError(
          `${place.file}: tensor '${tensor}' is quantised (${entry.dtype}); read are F32, BF16 and F16`,
        )
      }
      throw failure(place, `has dtype ${shown(entry.dtype)}; read are F32, BF16 and F16`)
    }
    if (!shapes.some((shape) => shape.length === entry.shape.length && shape.every((n, d) => n === entry.shape[d]))) {
      throw failure(place, `has shape ${shown(entry.shape)}, config.json makes it ${shapes.map(shown).join(' or ')}`)
    }
    return { stored, dtype, first: 0, elements: entry.shape.reduce((product, n) => product * n, 1) }
  }

  /** A tensor of the block that nothing took means that the configuration does not describe this model: a bias, say, or more experts. */
  refuseSurplus(family: string): void {
    for (const tensor of this.#directory.names()) {
      if (tensor.startsWith(this.#base) && !this.#used.has(tensor)) {
        throw failure(
          { file: this.#directory.listPath, tensor },
          `is not part of a ${family} block as config.json describes it`,
        )
      }
    }
  }
}

function findBlock(directory: CheckpointDirectory, family: Family, layer: number): { base: string; router: string } {
  const { tensors } = family
  for (const prefix of prefixes) {
    for (const name of tensors.block) {
      const base = `${prefix}layers.${layer}.${name}.`
      for (const router of tensors.router) if (directory.has(base + router)) return { base, router }
    }
  }
  const expected = `model.layers.${layer}.${tensors.block[0]}.${tensors.router[0]}`
  throw failure(
    { file: directory.listPath, tensor: expected },
    `the router's weight of a ${family.name} layer is missing`,
  )
}

function refuseQuantised(directory: CheckpointDirectory, family: Family, base: string): void {
  for (const name of directory.names()) {
    if (name.startsWith(base) && quantised.test(name)) {
      const advice = 'load it in transformers with dequantize: true and save it as bf16'
      throw new UnsupportedError(
        `${directory.listPath}: tensor '${name}': quantised ${family.name} weights are not read; ${advice}`,
      )
    }
  }
}

/** The first alternative that is there; the first of all where none is, so that the error names the usual tensor. */
function chooseExperts(directory: CheckpointDirectory, family: Family, base: string): ExpertTensors {
  const [first] = family.tensors.experts
  const probe = (x: ExpertTensors) => base + (x.layout === 'per-expert' ? x.gate.replace('{e}', '0') : x.gateUp)
  return family.tensors.experts.find((x) => directory.has(probe(x))) ?? first
}

async function planExperts(
  block: Block,
  names: ExpertTensors,
  { e, h, i }: { e: number; h: number; i: number },
  dtype: DiskDType,
): Promise<Pick<LayerPlan, 'experts' | 'expertBiases'>> {
  const up: Copy[] = []
  const down: Copy[] = []
  let biases: Target[] | null = null
  if (names.layout === 'per-expert') {
    for (let n = 0; n < e; n++) {
      const named = (name: string) => name.replace('{e}', String(n))
      const gate = await block.range(named(names.gate), [[i, h]])
      up.push(interleave(gate, await block.range(named(names.up), [[i, h]]), h, n * 2 * i * h))
      down.push({ kind: 'copy', at: n * h * i, from: await block.range(named(names.down), [[h, i]]) })
    }
  } else if (names.layout === 'fused') {
    const both = await block.range(names.gateUp, [[e, 2 * i, h]])
    for (let n = 0; n < 2 * e; n += 2) {
      up.push(interleave(part(both, n * i * h, i * h), part(both, (n + 1) * i * h, i * h), h, n * i * h))
    }
    down.push({ kind: 'copy', at: 0, from: await block.range(names.down, [[e, h, i]]) })
  } else {
    const both = await block.range(names.gateUp, [[e, h, 2 * i]])
    const out = await block.range(names.down, [[e, i, h]])
    const blocks = names.columns === 'blocks'
    for (let n = 0; n < e; n++) {
      const [upAt, downAt] = [n * 2 * i * h, n * h * i]
      up.push({ kind: 'transpose', at: upAt, from: part(both, upAt, 2 * i * h), columns: 2 * i, blocks })
      down.push({ kind: 'transpose', at: downAt, from: part(out, downAt, h * i), columns: h, blocks: false })
    }
    if (names.bias) {
      if (blocks) throw new UnsupportedError('biases of experts in blocks are not supported')
      biases = [
        whole([e, 2 * i], 'f32', await block.range(names.bias.gateUp, [[e, 2 * i]])),
        whole([e, h], 'f32', await block.range(names.bias.down, [[e, h]])),
      ]
    }
  }
  const experts = [
    { shape: [e, 2 * i, h], dtype, copies: up },
    { shape: [e, h, i], dtype, copies: down },
  ]
  return { experts, expertBiases: biases }
}

async function planShared(block: Block, name: string, width: number, h: number, dtype: DiskDType): Promise<Target[]> {
  const gate = await block.range(`${name}gate_proj.weight`, [[width, h]])
  const up = await block.range(`${name}up_proj.weight`, [[width, h]])
  const down = await block.range(`${name}down_proj.weight`, [[h, width]])
  return [{ shape: [2 * width, h], dtype, copies: [interleave(gate, up, h, 0)] }, whole([h, width], dtype, down)]
}

function interleave(gate: Range, up: Range, columns: number, at: number): Copy {
  if (gate.dtype !== up.dtype) {
    const { file, entry } = up.stored
    const gateName = gate.stored.entry.name
    throw failure(
      { file: file.path, tensor: entry.name },
      `is ${up.dtype}, but '${gateName}' beside it is ${gate.dtype}`,
    )
  }
  return { kind: 'interleave', at, gate, up, columns }
}

const whole = (shape: readonly number[], dtype: DType, from: Range): Target => ({
  shape,
  dtype,
  copies: [{ kind: 'copy', at: 0, from }],
})

const part = (range: Range, first: number, elements: number): Range => ({
  ...range,
  first: range.first + first,
  elements,
})
