/** The whole layer in float64, composed of the oracles of its parts: routing, expert MLPs, shared expert, combination. */
import { mlpOracle } from '../../router-kernels/test/support/mlp-oracle.js'
import { normal } from '../../router-kernels/test/support/random.js'
import { logitsOracle, routeOracle } from '../../router-kernels/test/support/router-oracle.js'
import type { MoELayerOptions } from '../src/index.js'
import { type LayerConfig, resolveOptions } from '../src/options.js'

/** Weights on the host, already rounded to the layer's dtype; also valid as `weights` of a layer. */
export interface HostWeights {
  readonly router: Float32Array
  readonly routerBias?: Float32Array
  readonly selectBias?: Float32Array
  readonly experts: Float32Array[]
  readonly expertBiases: (Float32Array | null)[]
  readonly shared?: Float32Array[]
  readonly sharedBiases?: (Float32Array | null)[]
  readonly sharedGate?: Float32Array
}

type Mlp = LayerConfig['experts']
function mlpShapes({ kind, inputDim, hiddenDim, outputDim }: Mlp): [rows: number, columns: number][] {
  const last: [number, number] = [outputDim, hiddenDim]
  if (kind === 'gated') return [[2 * hiddenDim, inputDim], last]
  if (kind === 'two-layer') return [[hiddenDim, inputDim], last]
  return [[hiddenDim, inputDim], [hiddenDim, hiddenDim], last]
}

/** Unit-scale random weights for the options: inputs of variance 1 give outputs of variance about 1. */
export function hostWeights(options: MoELayerOptions, seed: number): HostWeights {
  const config = resolveOptions({ device: 'cpu', ...options })
  const { experts, rule, shared, bias } = config
  const { dtype, inputDim } = experts
  let made = seed * 1000
  const random = (size: number, fanIn: number, type: Mlp['dtype'] = dtype): Float32Array =>
    normal(made++, size, 1 / Math.sqrt(fanIn), type)
  const matrices = (mlp: Mlp) => mlpShapes(mlp).map(([n, k]) => random(mlp.numExperts * n * k, k))
  const biases = (mlp: Mlp, has: boolean) =>
    mlpShapes(mlp).map(([n]) => (has ? random(mlp.numExperts * n, 4, 'f32') : null))
  return {
    router: random(rule.numExperts * inputDim, inputDim),
    experts: matrices(experts),
    expertBiases: biases(experts, bias),
    ...(shared && { shared: matrices(shared.mlp), sharedBiases: biases(shared.mlp, shared.bias) }),
    ...(shared?.gate && { sharedGate: random(inputDim, inputDim) }),
  }
}

export interface LayerOracle {
  readonly output: Float64Array
  readonly ids: Int32Array
  readonly weights: Float64Array
  readonly counts: Int32Array
}

const at = (list: ArrayLike<number>, i: number): number => list[i] ?? Number.NaN

/** The layer of these options on `x`, [tokens, inputDim]; with `logits` in place of the router's product; `got` as in `routeOracle`. */
export function layerOracle(
  options: MoELayerOptions,
  w: HostWeights,
  x: Float32Array,
  logits: Float32Array | null = null,
  got: ArrayLike<number> = [],
): LayerOracle {
  const { experts: mlp, rule, scaleInput, combine, shared } = resolveOptions({ device: 'cpu', ...options })
  const { inputDim, outputDim } = mlp
  const tokens = x.length / inputDim
  const scores = logits ?? logitsOracle(x, w.router, w.routerBias ?? null, tokens, rule.numExperts)
  const { ids, weights, counts } = routeOracle(rule, scores, tokens, w.selectBias ?? null, got)
  const width = combine === 'concat' ? rule.topK * outputDim : outputDim
  const output = new Float64Array(tokens * width)
  const add = (t: number, column: number, row: readonly number[], weight: number): void => {
    for (const [i, v] of row.entries()) {
      const to = t * width + column + i
      output[to] = at(output, to) + weight * v
    }
  }
  for (let t = 0; t < tokens; t++) {
    const row = x.subarray(t * inputDim, (t + 1) * inputDim)
    for (let j = 0; j < rule.topK; j++) {
      const slot = t * rule.topK + j
      const weight = at(weights, slot)
      const y = mlpOracle(mlp, w.experts, w.expertBiases, at(ids, slot), row, scaleInput ? weight : 1)
      add(t, combine === 'concat' ? j * outputDim : 0, y, scaleInput ? 1 : weight)
    }
    if (shared !== null) {
      const gate = w.sharedGate
      const scale = gate ? 1 / (1 + Math.exp(-row.reduce((sum, v, h) => sum + v * at(gate, h), 0))) : 1
      add(t, 0, mlpOracle(shared.mlp, w.shared ?? [], w.sharedBiases ?? [], 0, row), scale)
    }
  }
  return { output, ids, weights, counts }
}
