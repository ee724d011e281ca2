/** `nexus-bench tuned` */
import { defineCommand } from 'citty'
import { parseShapes } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress, seed } from './arguments.js'

const args = {
  shapes: {
    type: 'string',
    description: 'shapes, by commas: names, or NAME:hidden:inter:experts:topk',
    default: 'qwen3-30b-a3b,olmoe-1b-7b,deepseek-v2-lite,gpt-oss-20b,mixtral-8x7b,seed-small,seed-medium,seed-large',
  },
  tokens: {
    type: 'string',
    description: 'token counts, by commas: each stands for its bucket',
    default: '1,8,64,512,4096',
  },
  seconds: { type: 'string', description: 'seconds for each shape', default: '30' },
  seed: { type: 'string', description: 'seed of weights, inputs and loads', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'How far is a layer that nobody tuned from one that somebody did? For every shape and number of tokens, a whole step by the default’s kernels and ' +
  'by the best that tune finds. Nothing is kept.' +
  '\n\nTry: nexus-bench tuned --shapes qwen3-30b-a3b --tokens 64,512' +
  '\n     nexus-bench tuned --device cpu --shapes tiny:64:96:8:2 --tokens 1,16 --seconds 2'

export default defineCommand({
  meta: { name: 'tuned', description: 'The default kernels beside the best that tune finds' },
  args,
  async run({ args: given }) {
    const options = {
      device: checkedDevice(given.device),
      shapes: parseShapes(given.shapes),
      tokens: numbers('tokens', given.tokens),
      seconds: number('seconds', given.seconds, true),
      seed: seed('seed', given.seed),
      onProgress: progress,
    }
    const [{ tunedBench }, { tunedTable }] = await Promise.all([
      import('../tuned/bench.js'),
      import('../sections/tuned.js'),
    ])
    const result = await tunedBench(options)
    deliver(result, given, () => tunedTable(result))
  },
})
