/** `nexus-bench cpu` */
import { defineCommand } from 'citty'
import { parseShapes } from '../shapes.js'
import { deliver, number, numbers, outputArgs, progress, seed } from './arguments.js'

/** The original's two small configurations, and a published model's layer that no cache holds. */
const defaultShapes = 'seed-small,seed-medium,olmoe-1b-7b'

const args = {
  shapes: {
    type: 'string',
    description: 'names, or NAME:hidden:inter:experts:topk, by commas',
    default: defaultShapes,
  },
  tokens: { type: 'string', description: 'token counts, by commas', default: '1,16,128,512' },
  threads: { type: 'string', description: 'threads of both sides (default: as many as Nexus takes by itself)' },
  rounds: { type: 'string', description: 'rounds in which everyone has a turn', default: '15' },
  'turn-ms': { type: 'string', description: 'milliseconds of a turn, at least one call', default: '40' },
  python: { type: 'string', description: "interpreter that has a CPU build of torch, or 'none'", default: 'python3' },
  openblas: { type: 'string', description: 'libopenblas to compare the products with', valueHint: 'FILE' },
  'openblas-cores': {
    type: 'string',
    description: "kernels that OpenBLAS is made to use, by commas; 'auto' is its own choice",
    default: 'auto',
  },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'The peers are PyTorch’s CPU build: the layer as a loop over experts, as batched products and by its grouped product. They run where the ' +
  'interpreter has torch, else the result says why not.\n\nTry: nexus-bench cpu --python /path/to/venv/bin/python --shapes seed-small --tokens 1,16'

export default defineCommand({
  meta: { name: 'cpu', description: 'The layer on the CPU beside PyTorch and OpenBLAS, in turns on the same threads' },
  args,
  async run({ args: given }) {
    const options = {
      shapes: parseShapes(given.shapes),
      tokens: numbers('tokens', given.tokens),
      threads: given.threads === undefined ? null : number('threads', given.threads),
      rounds: number('rounds', given.rounds),
      turnMs: number('turn-ms', given['turn-ms'], true),
      seed: seed('seed', given.seed),
      python: given.python === 'none' ? null : given.python,
      openblas: given.openblas ?? null,
      openblasCores: given['openblas-cores'].split(','),
      onProgress: progress,
    }
    if (options.python === null && options.openblas !== null) {
      throw new RangeError("--openblas: needs --python, whose process loads it; got 'none'")
    }
    const [{ cpuBench }, { cpuSection }] = await Promise.all([
      import('../cpu/cpu-bench.js'),
      import('../sections/cpu.js'),
    ])
    const result = await cpuBench(options)
    deliver(result, given, () => cpuSection('cpu', result))
    if (result.peersError !== null) progress(`peers: ${result.peersError}`)
  },
})
