/** What a layer is made of natively: its descriptor and weights, from the checked options. */
import { describe, type Stream, type Tensor } from '@nexus/native'
import { combineModes, mlpDesc, routerDesc } from '@nexus/router-kernels/internal'
import type { MoELayer } from './layer.js'
import { dtypeCode, type RawLayerDesc, type RawLayerWeights, readOrNull } from './native.js'
import type { LayerConfig, MoELayerOptions } from './options.js'
import { givenWeights, randomWeights, WeightSet } from './weights.js'

export function layerDesc(
  { rule, scaleInput, experts, combine, shared, deterministic }: LayerConfig,
  weights: WeightSet,
): RawLayerDesc {
  return {
    router: routerDesc(rule),
    routerDtype: dtypeCode[weights.router?.dtype ?? 'f32'],
    scaleInput,
    experts: { ...mlpDesc(experts), inPanels: weights.inPanels.experts },
    combine: combineModes.indexOf(combine),
    shared: shared === null ? null : { ...mlpDesc(shared.mlp), inPanels: weights.inPanels.shared },
    sharedGate: shared?.gate ?? false,
    batchInvariant: deterministic === 'batch-invariant',
  }
}

/** The buffers, each ordered on the layer's stream behind whatever filled it. */
export function layerWeights(stream: Stream, weights: WeightSet): RawLayerWeights {
  const of = (tensor: Tensor | null) => readOrNull(stream, tensor)
  return {
    routerWeight: of(weights.router),
    routerBias: of(weights.routerBias),
    selectBias: of(weights.selectBias),
    expertWeight: weights.experts.map(of),
    expertBias: weights.expertBiases.map(of),
    sharedWeight: weights.shared.map(of),
    sharedBias: weights.sharedBiases.map(of),
    sharedGate: of(weights.sharedGate),
  }
}

/**
 * Whether the weights of `from` are a layer's of this configuration.
 * @throws TypeError or RangeError naming what does not agree
 */
export function checkShared(options: MoELayerOptions, config: LayerConfig, from: MoELayer): void {
  if (!(from?.weights instanceof WeightSet))
    throw new TypeError(`weightsFrom must be a MoELayer, got ${describe(from)}`)
  refuseOwnWeights(options)
  checkSame(from.config, config, ['experts', 'shared', 'device'])
}

/** @throws TypeError naming what is said of weights beside `weightsFrom` */
export function refuseOwnWeights(options: Partial<MoELayerOptions>): void {
  for (const name of ['weights', 'adoptWeights', 'weightLayout'] as const) {
    if (options[name] === undefined || (name === 'weights' && options.weights === null)) continue
    throw new TypeError(`${name} must not be given with weightsFrom, whose weights are shared`)
  }
}

/** @throws RangeError naming the first of `names` in which a configuration differs from that of `weightsFrom` */
export function checkSame<T>(from: T, config: T, names: readonly (keyof T & string)[]): void {
  for (const name of names) {
    const [want, have] = [JSON.stringify(from[name]), JSON.stringify(config[name])]
    if (want !== have) throw new RangeError(`${name} must be that of weightsFrom (${want}), got ${have}`)
  }
}

/** Weights by the options: given and converted, or random. Shared with the baseline. */
export async function makeWeights(options: MoELayerOptions, config: LayerConfig, stream: Stream): Promise<WeightSet> {
  if (!options.weights) return randomWeights({ config, stream })
  const { weights, adoptWeights: adopt = false, bias: biasAsked = false } = options
  return givenWeights({ config, stream }, weights, { adopt, biasAsked })
}
