/** `nexus-bench endurance` */
import { defineCommand } from 'citty'
import { parseShape } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress, seed } from './arguments.js'

const args = {
  shape: { type: 'string', description: 'shape of the layer', default: 'seed-small' },
  tokens: { type: 'string', description: 'batch sizes that take turns, by commas', default: '1,64,7,128' },
  steps: { type: 'string', description: 'steps by graph, and as many without', default: '1000000' },
  seed: { type: 'string', description: 'seed of weights and inputs', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Does memory grow over a million steps? Batches of several sizes in turns, by recorded graphs and one operation at a time; what tensors and ' +
  'workspaces hold, what the device has free and what the process has resident, read twenty times on the way; and whether the last results ' +
  'have the bytes of the first.' +
  '\n\nTry: nexus-bench endurance --steps 100000' +
  '\n     nexus-bench endurance --device cpu --shape tiny:64:96:8:2 --tokens 1,16 --steps 10000'

export default defineCommand({
  meta: { name: 'endurance', description: 'Very many steps of a layer, and whether memory stays what it was' },
  args,
  async run({ args: given }) {
    const options = {
      device: checkedDevice(given.device),
      shape: parseShape(given.shape, 'shape'),
      tokens: numbers('tokens', given.tokens),
      steps: number('steps', given.steps),
      seed: seed('seed', given.seed),
      onProgress: progress,
    }
    const [{ enduranceBench }, { enduranceTable }] = await Promise.all([
      import('../endurance/bench.js'),
      import('../sections/endurance.js'),
    ])
    const result = await enduranceBench(options)
    deliver(result, given, () => enduranceTable(result))
  },
})
