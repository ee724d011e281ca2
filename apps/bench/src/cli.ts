/** `nexus-bench`: benchmarks with their peers. Results on stdout (a table, or JSON with --json), progress on stderr. */
import { defineCommand, runMain } from 'citty'
import { writeBenchmarks } from './docs.js'
import { layerBench, layerTable } from './layer-bench.js'
import { parseShape, shapes } from './shapes.js'

const numbers = (name: string, text: string) =>
  text.split(',').map((t) => {
    const v = Number(t)
    if (!Number.isInteger(v) || v < 1) throw new RangeError(`--${name}: '${t}' is not a positive integer`)
    return v
  })

const layer = defineCommand({
  meta: { name: 'layer', description: 'The whole layer, from (x, router logits) to y, beside its peers' },
  args: {
    shapes: {
      type: 'string',
      description: `names, or NAME:hidden:inter:experts:topk, by commas (default: ${shapes.map((s) => s.name).join(',')})`,
      default: shapes.map((s) => s.name).join(','),
    },
    tokens: { type: 'string', description: 'token counts, by commas', default: '1,8,64,512,4096' },
    skew: { type: 'string', description: 'standard deviation of a per-expert logit bias', default: '0' },
    device: { type: 'string', description: 'cuda or cpu', default: 'cuda' },
    peers: {
      type: 'string',
      description: "peers to run, by commas, or 'none'",
      default: 'torch_grouped_mm,grouped_mm_glue',
    },
    'peer-budget': { type: 'string', description: 'seconds for all peers together', default: '240' },
    'budget-ms': { type: 'string', description: 'milliseconds of timing for a cell', default: '150' },
    seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
    out: { type: 'string', description: 'result file to write' },
    json: { type: 'boolean', description: 'print the result as JSON' },
  },
  async run({ args }) {
    if (args.device !== 'cuda' && args.device !== 'cpu')
      throw new RangeError(`--device: '${args.device}' is not cuda or cpu`)
    const result = await layerBench({
      shapes: args.shapes.split(',').map(parseShape),
      tokens: numbers('tokens', args.tokens),
      skew: Number(args.skew),
      device: args.device,
      peers: args.peers === 'none' ? [] : args.peers.split(','),
      peerBudgetSeconds: Number(args['peer-budget']),
      budgetMs: Number(args['budget-ms']),
      seed: Number(args.seed),
      out: args.out ?? null,
      onProgress: (line) => process.stderr.write(`${line}\n`),
    })
    process.stdout.write(args.json ? `${JSON.stringify(result, null, 1)}\n` : `${layerTable(result)}\n`)
    if (result.peersError !== null) process.stderr.write(`peers: ${result.peersError}\n`)
  },
})

const docs = defineCommand({
  meta: { name: 'docs', description: 'Write docs/benchmarks.md from the result files' },
  run() {
    process.stdout.write(`${writeBenchmarks()}\n`)
  },
})

const main = defineCommand({
  meta: { name: 'nexus-bench', description: 'Benchmarks of Nexus beside its peers, in the same run' },
  subCommands: { layer, docs },
})

await runMain(main)
