/** `nexus-bench kernels` */
import { defineCommand } from 'citty'
import { parseShapes, shapes } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress, seed } from './arguments.js'

const args = {
  shapes: {
    type: 'string',
    description: 'shapes, by commas: names, or NAME:hidden:inter:experts:topk',
    default: shapes.map((s) => s.name).join(','),
  },
  tokens: { type: 'string', description: 'token counts, by commas', default: '1,8,64,512,4096,16384' },
  'only-chosen': { type: 'boolean', description: 'only what the layer chooses itself, no other variants' },
  'budget-ms': { type: 'string', description: 'milliseconds of each timing', default: '40' },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Which part of a step takes how long, and how near it is to the machine: router product, routing, experts, combine, each alone, in ' +
  'microseconds, GB/s and TFLOP/s, by kernel variant. The result is checked against float64 first. The two linear layers of the experts ' +
  'are measured alone by every variant that computes them, and the phases once more under NEXUS_CUDA_ARCH (NEXUS_CPU_ISA).' +
  '\n\nTry: nexus-bench kernels --shapes qwen3-30b-a3b --tokens 64,4096' +
  '\n     nexus-bench kernels --device cpu --shapes tiny:64:96:8:2 --tokens 16'

export default defineCommand({
  meta: { name: 'kernels', description: 'Each phase of a step alone, by kernel variant: microseconds, GB/s, TFLOP/s' },
  args,
  async run({ args: given }) {
    const options = {
      device: checkedDevice(given.device),
      shapes: parseShapes(given.shapes),
      tokens: numbers('tokens', given.tokens),
      budgetMs: number('budget-ms', given['budget-ms'], true),
      seed: seed('seed', given.seed),
      alternatives: given['only-chosen'] !== true,
      script: process.argv[1],
      onProgress: progress,
    }
    const [{ kernelsBench }, { kernelsTable }] = await Promise.all([
      import('../primitives/kernels.js'),
      import('../sections/kernels.js'),
    ])
    const result = await kernelsBench(options)
    deliver(result, given, () => kernelsTable(result))
  },
})
