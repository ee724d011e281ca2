/**
 * How the experts' weights lie in memory. As rows, torch's Linear layout, or on CUDA in panels (kernels/include/nexus/weight_panels.h): the
 * order in which the kernels read them, the same bits at the memory's better rate. A layer lays its own weights so when it is made.
 */
import { type Stream, Tensor, UnsupportedError } from '@nexus/native'
import { bufferOf, call, deviceIndex, readOn, streamOf, writeOn } from './native.js'
import type { LayerConfig } from './options.js'
import { type LinearSpec, linearsOf, type MlpName } from './tuning/linears.js'
import { tensorsInPanels, type WeightSet } from './weights.js'

/** Option `weightLayout` of a layer. */
export type WeightLayout = 'auto' | 'rows' | 'panels'
export const weightLayouts: readonly WeightLayout[] = ['auto', 'rows', 'panels']

interface Place {
  readonly config: LayerConfig
  readonly stream: Stream
}

const mlpNames: readonly MlpName[] = ['experts', 'shared']
const linearsIn = ({ experts, rule, shared }: LayerConfig) => linearsOf(experts, rule.topK, shared?.mlp ?? null)

/** The linear layers of a layer, with the weights that the set has for them. */
function weightsOf(set: WeightSet, config: LayerConfig): { linear: LinearSpec; tensor: Tensor }[] {
  return linearsIn(config).flatMap((linear) => {
    const tensor = set[linear.mlp][linear.index]
    return tensor === undefined ? [] : [{ linear, tensor }]
  })
}

function lay(stream: Stream, { raw }: LinearSpec, tensor: Tensor, toRows: boolean): void {
  const weight = writeOn(stream, tensor)
  call((b) => b.routerKernels.layPanels(streamOf(stream), raw, weight, toRows))
  if (toRows) tensorsInPanels.delete(tensor)
  else tensorsInPanels.add(tensor)
}

/** Lays a linear layer's weights into panels where they are, in stream order. */
export function layIntoPanels(stream: Stream, linear: LinearSpec, tensor: Tensor): void {
  lay(stream, linear, tensor, false)
}

/** Whose weights the device's kernels read faster in panels: of an MLP all linear layers' or none. */
export function panelsThatPay(config: LayerConfig): Record<MlpName, boolean> {
  const device = deviceIndex(config.device)
  const pays = (mlp: MlpName) => {
    const linears = linearsIn(config).filter((linear) => linear.mlp === mlp)
    return linears.every(({ raw }) => call((b) => b.routerKernels.panelUse(device, raw)).pay)
  }
  return { experts: pays('experts'), shared: pays('shared') }
}

/**
 * Lays the weights of an MLP into panels, all of its linear layers or none. 'auto': where the device's kernels are faster on them, and the set
 * owns them all. 'panels': in any case; of tensors that are the caller's a copy is made.
 * @throws UnsupportedError on the CPU, RangeError naming the weights that cannot lie so, where 'panels' was asked for
 */
export function layWeights(set: WeightSet, { config, stream }: Place, layout: WeightLayout): void {
  if (layout === 'rows') return
  if (layout === 'panels') checkPanels(config)
  const pay = panelsThatPay(config)
  for (const mlp of mlpNames) {
    const own = weightsOf(set, config).filter(({ linear }) => linear.mlp === mlp)
    const wanted = layout === 'panels' || (pay[mlp] && own.every(({ tensor }) => set.owns(tensor)))
    if (own.length === 0 || !wanted) continue
    for (const { linear, tensor } of own) {
      const laid = set.owns(tensor) ? tensor : set.own(copied(stream, tensor))
      set[mlp][linear.index] = laid
      layIntoPanels(stream, linear, laid)
    }
  }
}

function checkPanels(config: LayerConfig): void {
  if (config.device === 'cpu') {
    throw new UnsupportedError("weightLayout: expected 'auto' or 'rows' on the CPU, got 'panels'")
  }
  const device = deviceIndex(config.device)
  for (const { raw, dtype, n, k, gated, name } of linearsIn(config)) {
    if (call((b) => b.routerKernels.panelUse(device, raw)).fit) continue
    const rows = gated ? 16 : 8
    throw new RangeError(
      `weightLayout: 'panels' needs bf16 or f16, rows by ${rows} and columns by 64; ${name} has ${dtype}, ${n} rows and ${k} columns`,
    )
  }
}

/** For kernels that want rows: this set, or where it lies in panels one of the same weights with copies of those. A user of it more. */
export function inRows(set: WeightSet, place: Place): WeightSet {
  const kept = set.retain()
  if (!kept.inPanels.experts && !kept.inPanels.shared) return kept
  const rows = kept.derived()
  try {
    for (const { linear, tensor } of weightsOf(set, place.config)) {
      if (!tensorsInPanels.has(tensor)) continue
      const copy = rows.own(copied(place.stream, tensor))
      rows[linear.mlp][linear.index] = copy
      lay(place.stream, linear, copy, true)
    }
    return rows
  } catch (error) {
    rows.release()
    throw error
  }
}

function copied(stream: Stream, tensor: Tensor): Tensor {
  const { dtype, device, shape } = tensor
  const copy = Tensor.empty(shape, { dtype, device, stream })
  try {
    const [from, to] = [readOn(stream, tensor), bufferOf(copy)]
    call((b) => b.native.copy(streamOf(stream), to, 0, from, 0, tensor.byteLength))
    return copy
  } catch (error) {
    copy.dispose()
    throw error
  }
}
