/** `nexus-bench skew` */
import { defineCommand } from 'citty'
import { parseShapes } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress, seed } from './arguments.js'

const args = {
  shapes: { type: 'string', description: 'shapes, by commas', default: 'qwen3-30b-a3b,olmoe-1b-7b,mixtral-8x7b' },
  tokens: { type: 'string', description: 'tokens of a step, by commas', default: '64,256,2048' },
  skews: {
    type: 'string',
    description:
      "standard deviations of the experts' logit bias, by commas: 1.5 is the anchors', 0.7 and 2 were not tuned on",
    default: '1.5,0.7,2',
  },
  rounds: { type: 'string', description: 'interleaved rounds of each cell; 200 and more for results', default: '200' },
  seed: { type: 'string', description: 'seed of weights, inputs and biases', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Do slices pay where a few experts are hot? One layer by strategy (fused, tiered, cooperative, auto), steps in turns, medians with ' +
  'bootstrap intervals; and what auto lost by its choice. Every shape with every token count and every skew is a cell. ' +
  '\n\nTry: nexus-bench skew --shapes olmoe-1b-7b --tokens 256 --skews 1.5'

export default defineCommand({
  meta: { name: 'skew', description: 'Slices against one launch where a few experts are hot, and what auto chose' },
  args,
  async run({ args: given }) {
    const shapes = parseShapes(given.shapes)
    const tokens = numbers('tokens', given.tokens)
    const skews = given.skews.split(',').map((text) => (Number(text) === 0 ? 0 : number('skews', text, true)))
    const options = {
      device: checkedDevice(given.device),
      cells: skews.flatMap((skew) => shapes.flatMap((shape) => tokens.map((n) => ({ shape, tokens: n, skew })))),
      rounds: number('rounds', given.rounds),
      seed: seed('seed', given.seed),
      onProgress: progress,
    }
    const [{ skewBench }, { skewSection }] = await Promise.all([
      import('../scheduling/skew.js'),
      import('../sections/skew.js'),
    ])
    const result = await skewBench(options)
    deliver(result, given, () => skewSection('skew', result))
  },
})
