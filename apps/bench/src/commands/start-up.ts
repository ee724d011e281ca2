/** `nexus-bench start-up` */
import { defineCommand } from 'citty'
import { checkedDevice, deliver, deviceArg, number, outputArgs, progress, seed } from './arguments.js'
import { parseCells } from './cells-argument.js'

const args = {
  cells: {
    type: 'string',
    description: 'first steps, as SHAPE/tokens by commas',
    default: 'seed-small/64,qwen3-30b-a3b/1,qwen3-30b-a3b/64,qwen3-30b-a3b/4096,gpt-oss-20b/64,mixtral-8x7b/512',
  },
  runs: { type: 'string', description: 'processes for each', default: '3' },
  once: {
    type: 'string',
    description: 'be such a process for SHAPE/tokens: its times as JSON',
    valueHint: 'SHAPE/tokens',
  },
  seed: { type: 'string', description: 'seed of weights and inputs', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'How long does a new process take to its first result? Until the layer has its weights, the first forward, the second, and those behind it; each ' +
  'run in a process of its own. Nothing is compiled at run time: what the first forward has more than later ones is code that is loaded and ' +
  'workspaces that are made.' +
  '\n\nTry: nexus-bench start-up --cells qwen3-30b-a3b/64 --runs 5' +
  '\n     nexus-bench start-up --device cpu --cells tiny:64:96:8:2/16'

export default defineCommand({
  meta: { name: 'start-up', description: 'From the start of a process to its first result' },
  args,
  async run({ args: given }) {
    const device = checkedDevice(given.device)
    const first = seed('seed', given.seed)
    if (given.once !== undefined) {
      const [cell, ...more] = parseCells('once', given.once)
      if (cell === undefined || more.length > 0) throw new RangeError(`--once: expected one cell, got '${given.once}'`)
      const { startOnce } = await import('../start-up/once.js')
      process.stdout.write(`${JSON.stringify(await startOnce(cell.shape, cell.tokens, device, first))}\n`)
      return
    }
    const options = {
      device,
      cells: parseCells('cells', given.cells),
      runs: number('runs', given.runs),
      seed: first,
      program: process.argv[1] ?? '',
      onProgress: progress,
    }
    const [{ startUpBench }, { startUpTable }] = await Promise.all([
      import('../start-up/bench.js'),
      import('../sections/start-up.js'),
    ])
    const result = await startUpBench(options)
    deliver(result, given, () => startUpTable(result))
  },
})
