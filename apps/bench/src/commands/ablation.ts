/** `nexus-bench ablation` */
import { defineCommand } from 'citty'
import { checkedDevice, deliver, deviceArg, number, outputArgs, progress, seed, torchPeer } from './arguments.js'
import { parseCells } from './cells-argument.js'

const args = {
  cells: {
    type: 'string',
    description: 'steps, as SHAPE/tokens by commas',
    default: 'seed-small/64,seed-medium/64,seed-large/512,qwen3-30b-a3b/64,mixtral-8x7b/512',
  },
  skew: { type: 'string', description: 'standard deviation of a per-expert logit bias', default: '0' },
  seconds: { type: 'string', description: 'seconds of each rung; energy needs one and more', default: '2' },
  peers: { type: 'string', description: "'torch', or 'none': the textbook loop in PyTorch", default: 'torch' },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'What is each part worth? Textbook loop (in PyTorch and of our own primitives), fused kernels, graphs, slices, streams, auto: throughput, ' +
  'latency, SM and memory activity by the chip’s counters, joules for each token. The output of each rung is checked against float64 first. A ' +
  'step that loses is shown as a loss; a figure that cannot be measured is n/a, with the reason below.' +
  '\n\nTry: nexus-bench ablation --cells qwen3-30b-a3b/64 --seconds 3' +
  '\n     nexus-bench ablation --device cpu --cells tiny:64:96:8:2/16 --seconds 0.1 --peers none'

export default defineCommand({
  meta: { name: 'ablation', description: 'From the textbook loop to slices and streams: what each step is worth' },
  args,
  async run({ args: given }) {
    const torch = torchPeer(given.peers)
    const skew = Number(given.skew) === 0 ? 0 : number('skew', given.skew, true)
    const options = {
      device: checkedDevice(given.device),
      cells: parseCells('cells', given.cells, skew),
      seconds: number('seconds', given.seconds, true),
      seed: seed('seed', given.seed),
      torch,
      onProgress: progress,
    }
    const [{ ablationBench }, { ablationTable }] = await Promise.all([
      import('../ablation/bench.js'),
      import('../sections/ablation.js'),
    ])
    const result = await ablationBench(options)
    deliver(result, given, () => ablationTable(result))
  },
})
