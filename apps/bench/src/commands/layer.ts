/** `nexus-bench layer` */
import { defineCommand } from 'citty'
import { parseShape, shapes } from '../shapes.js'
import { checkedDevice, deviceArg, numbers, outputArgs, progress } from './arguments.js'

const args = {
  shapes: {
    type: 'string',
    description: `names, or NAME:hidden:inter:experts:topk, by commas (default: ${shapes.map((s) => s.name).join(',')})`,
    default: shapes.map((s) => s.name).join(','),
  },
  tokens: { type: 'string', description: 'token counts, by commas', default: '1,8,64,512,4096' },
  skew: { type: 'string', description: 'standard deviation of a per-expert logit bias', default: '0' },
  ...deviceArg,
  peers: {
    type: 'string',
    description: "peers to run, by commas, or 'none'",
    default: 'torch_grouped_mm,grouped_mm_glue',
  },
  'peer-budget': { type: 'string', description: 'seconds for all peers together', default: '240' },
  'budget-ms': { type: 'string', description: 'milliseconds of timing for a cell', default: '150' },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...outputArgs,
} as const

export default defineCommand({
  meta: { name: 'layer', description: 'The whole layer, from (x, router logits) to y, beside its peers' },
  args,
  async run({ args: given }) {
    const device = checkedDevice(given.device)
    const { layerBench, layerTable } = await import('../layer-bench.js')
    const result = await layerBench({
      shapes: given.shapes.split(',').map(parseShape),
      tokens: numbers('tokens', given.tokens),
      skew: Number(given.skew),
      device,
      peers: given.peers === 'none' ? [] : given.peers.split(','),
      peerBudgetSeconds: Number(given['peer-budget']),
      budgetMs: Number(given['budget-ms']),
      seed: Number(given.seed),
      out: given.out ?? null,
      onProgress: progress,
    })
    process.stdout.write(given.json ? `${JSON.stringify(result, null, 1)}\n` : `${layerTable(result)}\n`)
    if (result.peersError !== null) progress(`peers: ${result.peersError}`)
  },
})
