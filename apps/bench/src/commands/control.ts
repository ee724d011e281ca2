/** `nexus-bench control` */
import { defineCommand } from 'citty'
import { parseShape } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, outputArgs, progress } from './arguments.js'

const args = {
  shape: { type: 'string', description: 'shape of the layer that is watched', default: 'qwen3-30b-a3b' },
  tokens: { type: 'string', description: 'tokens of its steps', default: '64' },
  pairs: { type: 'string', description: 'interleaved pairs of a bare and a watched step', default: '400' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'What control costs: host time of a policy decision, of a switch between layouts, of a step by a graph and without one, of a launch alone ' +
  'and as a node of a graph; and the device time that profiling and metering add to a step. Each beside its bound.' +
  '\n\nTry: nexus-bench control --shape olmoe-1b-7b --pairs 100'

export default defineCommand({
  meta: {
    name: 'control',
    description: 'What deciding, switching, launching and watching cost, each beside its bound',
  },
  args,
  async run({ args: given }) {
    const options = {
      device: checkedDevice(given.device),
      shape: parseShape(given.shape, 'shape'),
      tokens: number('tokens', given.tokens),
      pairs: number('pairs', given.pairs),
      onProgress: progress,
    }
    const [{ controlBench }, { controlSection }] = await Promise.all([
      import('../scheduling/control.js'),
      import('../sections/control.js'),
    ])
    const result = await controlBench(options)
    deliver(result, given, () => controlSection('control', result))
  },
})
