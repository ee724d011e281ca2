/** `nexus-bench float32` */
import { defineCommand } from 'citty'
import { checkedDevice, deliver, deviceArg, number, outputArgs, progress, seed, torchPeer } from './arguments.js'
import { parseCells } from './cells-argument.js'

const args = {
  cells: {
    type: 'string',
    description: 'steps, as SHAPE/tokens by commas',
    default: 'seed-medium/4096,olmoe-1b-7b/512,olmoe-1b-7b/4096,qwen3-30b-a3b/4096,mixtral-8x7b/4096',
  },
  peers: { type: 'string', description: "'torch', or 'none': cuBLAS's SGEMM through PyTorch", default: 'torch' },
  'budget-ms': { type: 'string', description: 'milliseconds of timing for a cell', default: '150' },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Is float32 true float32, and how fast is it? The output is held against float64 to float32’s own error, which TF32 does not keep; the rate ' +
  'beside cuBLAS’s SGEMM by PyTorch with TF32 off, an expert’s rows at a time and one large square product.' +
  '\n\nTry: nexus-bench float32 --cells olmoe-1b-7b/4096' +
  '\n     nexus-bench float32 --device cpu --cells tiny:64:96:8:2/16 --peers none'

export default defineCommand({
  meta: { name: 'float32', description: 'The layer in float32 beside cuBLAS’s SGEMM' },
  args,
  async run({ args: given }) {
    const peer = torchPeer(given.peers)
    const options = {
      device: checkedDevice(given.device),
      cells: parseCells('cells', given.cells),
      budgetMs: number('budget-ms', given['budget-ms'], true),
      seed: seed('seed', given.seed),
      peer,
      onProgress: progress,
    }
    const [{ float32Bench }, { float32Table }] = await Promise.all([
      import('../float32/bench.js'),
      import('../sections/float32.js'),
    ])
    const result = await float32Bench(options)
    deliver(result, given, () => float32Table(result))
  },
})
