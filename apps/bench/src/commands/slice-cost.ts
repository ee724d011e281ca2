/** `nexus-bench slice-cost` */
import { defineCommand } from 'citty'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress, seed } from './arguments.js'
import { parseCells } from './cells-argument.js'

const args = {
  cells: {
    type: 'string',
    description: 'steps, as SHAPE/tokens by commas: from the shortest to the one in question',
    default: 'seed-small/1,seed-small/64,seed-medium/64,qwen3-30b-a3b/1,olmoe-1b-7b/64,qwen3-30b-a3b/64',
  },
  sms: { type: 'string', description: 'SMs of the slices, by commas', default: '48,64,80,96,120' },
  'budget-ms': { type: 'string', description: 'milliseconds of each timing', default: '60' },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Where does a slice’s cost come from? One layer alone on the whole device and in hardware slices of it, by graph and launched one operation at ' +
  'a time, phase by phase; the same by kernels that are capped at as many SMs; and kernels of nothing beside one that only reads. A constant number of microseconds over steps of all lengths is ' +
  'launching; a part of the step is bandwidth or arithmetic.' +
  '\n\nTry: nexus-bench slice-cost --sms 64 --cells seed-small/1,qwen3-30b-a3b/64'

export default defineCommand({
  meta: { name: 'slice-cost', description: 'What a hardware slice costs a step that is alone in it, and why' },
  args,
  async run({ args: given }) {
    const options = {
      device: checkedDevice(given.device),
      cells: parseCells('cells', given.cells),
      sms: numbers('sms', given.sms),
      budgetMs: number('budget-ms', given['budget-ms'], true),
      seed: seed('seed', given.seed),
      onProgress: progress,
    }
    const [{ sliceCostBench }, { sliceCostSection }] = await Promise.all([
      import('../slice-cost/bench.js'),
      import('../sections/slice-cost.js'),
    ])
    const result = await sliceCostBench(options)
    deliver(result, given, () => sliceCostSection('slice-cost', result))
  },
})
