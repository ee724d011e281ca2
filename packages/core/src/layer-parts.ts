/** What a layer is made of natively: its descriptor and weights, from the checked options. */
import type { Stream, Tensor } from '@nexus/native'
import { combineModes, mlpDesc, routerDesc } from '@nexus/router-kernels/internal'
import { dtypeCode, type RawLayerDesc, type RawLayerWeights, readOrNull } from './native.js'
import type { LayerConfig, MoELayerOptions } from './options.js'
import { givenWeights, randomWeights, type WeightSet } from './weights.js'

export function layerDesc(
  { rule, scaleInput, experts, combine, shared, deterministic }: LayerConfig,
  weights: WeightSet,
): RawLayerDesc {
  return {
    router: routerDesc(rule),
    routerDtype: dtypeCode[weights.router?.dtype ?? 'f32'],
    scaleInput,
    experts: mlpDesc(experts),
    combine: combineModes.indexOf(combine),
    shared: shared === null ? null : mlpDesc(shared.mlp),
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

/** Weights by the options: given and converted, or random. Shared with the baseline. */
export async function makeWeights(options: MoELayerOptions, config: LayerConfig, stream: Stream): Promise<WeightSet> {
  if (!options.weights) return randomWeights({ config, stream })
  const { weights, adoptWeights: adopt = false, bias: biasAsked = false } = options
  return givenWeights({ config, stream }, weights, { adopt, biasAsked })
}
