/** The layers that the tests go through: every kind, router, dtype and option at least once, at sizes that divide nothing. */
import { type MoELayerOptions, routers } from '../src/index.js'

const odd = { inputDim: 19, hiddenDim: 13, outputDim: 11, numExperts: 7, topK: 3 }
const counts = { numExperts: 8, topK: 2 }
const small = { inputDim: 16, hiddenDim: 24, ...counts }

export const layers: Record<string, MoELayerOptions> = {
  'gated, all defaults': odd,
  'three-layer with biases': { ...odd, kind: 'three-layer' },
  'two-layer silu': { ...odd, kind: 'two-layer' },
  'two-layer gelu with biases': { ...odd, kind: 'two-layer', activation: 'gelu', bias: true },
  'geglu, concat': { ...odd, activation: 'geglu', combine: 'concat' },
  'one expert': { inputDim: 5, hiddenDim: 3, numExperts: 1, topK: 1 },
  'dimensions of one': { inputDim: 1, hiddenDim: 1, outputDim: 1, numExperts: 2, topK: 1 },
  'many experts, k = 8': { ...odd, numExperts: 67, topK: 8 },
  mixtral: { ...small, router: routers.mixtral(counts) },
  'qwen2-moe: gated shared expert': {
    ...small,
    router: routers.qwen2Moe(counts),
    shared: { hiddenDim: 17, gate: true },
  },
  'deepseek-v3: groups and a shared expert': {
    ...small,
    router: routers.deepseekV3({ ...counts, groups: { count: 4, keep: 2 } }),
    shared: { hiddenDim: 10 },
  },
  'gpt-oss: clamped swiglu with biases': {
    ...small,
    activation: 'clamped-swiglu',
    bias: true,
    router: routers.gptOss(counts),
  },
  'llama-4: scaled input and a shared expert': {
    ...small,
    router: routers.llama4(counts),
    scaleInput: true,
    shared: { hiddenDim: 24, bias: true },
  },
  'phi-moe: sparsemixer': { ...small, router: routers.phiMoe(counts) },
}
