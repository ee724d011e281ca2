/** `nexus-bench layer` */
import { defineCommand } from 'citty'
import { resultText, writeWhole } from '../result-file.js'
import { parseShapes, shapes } from '../shapes.js'
import {
  checkedDevice,
  deliver,
  deviceArg,
  number,
  numbers,
  outputArgs,
  progress,
  readJson,
  seed,
} from './arguments.js'

const args = {
  shapes: {
    type: 'string',
    description: `shapes, by commas: ${shapes.map((s) => s.name).join(', ')}, or NAME:hidden:inter:experts:topk; default all of the anchors`,
  },
  tokens: {
    type: 'string',
    description: "token counts, by commas: all combinations with the shapes; default the anchors' cells",
  },
  skew: {
    type: 'string',
    description: "standard deviation of a per-expert logit bias; default the anchors' cells, with --tokens 0",
  },
  part: {
    type: 'string',
    description: 'the i-th of n parts of the cells, for a run in several calls',
    valueHint: 'i/n',
  },
  merge: { type: 'boolean', description: 'measure nothing: join the result files that follow into one' },
  eager: { type: 'boolean', description: 'launch steps one operation at a time instead of by graphs' },
  'without-invariance': { type: 'boolean', description: 'do not time batch-invariant layers as well' },
  ...deviceArg,
  peers: {
    type: 'string',
    description: "peers to run, by commas, or 'none'",
    default: 'torch_grouped_mm,grouped_mm_glue,warp_decode',
  },
  'peer-budget': { type: 'string', description: 'seconds for all peers together', default: '300' },
  'budget-ms': { type: 'string', description: 'milliseconds of timing for a cell', default: '150' },
  seed: { type: 'string', description: 'seed of weights, inputs and logits', default: '1' },
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'The whole layer from (x, router logits) to y, cell by cell: the output is checked against float64 first, then steps are timed in one graph ' +
  'of all of them, as the peers are, weights rotated beyond the cache; once more by a launch a step (column "a launch"), with the router’s own product, and batch-invariant. Without options it measures every cell of the anchors. ' +
  'Python peers run on the same logits where torch, triton and transformers are installed; the anchors’ times of the others are scaled by ' +
  'torch’s time now over its time there, and labelled so. The table names the best peer of each cell, best ÷ ours, and whether the aim is met.' +
  '\n\nTry: nexus-bench layer --shapes qwen3-30b-a3b --out qwen3.json' +
  '\n     nexus-bench layer --part 1/2 --out a.json; nexus-bench layer --part 2/2 --out b.json' +
  '\n     nexus-bench layer --merge a.json b.json --out h200-layer.json' +
  '\n     nexus-bench layer --device cpu --shapes tiny:64:96:8:2 --tokens 1,16 --peers none'

function parsePart(text: string): { index: number; of: number } {
  const [, index, of] = /^(\d+)\/(\d+)$/.exec(text) ?? []
  if (index === undefined || of === undefined) throw new RangeError(`--part: '${text}' is not i/n, such as 1/2`)
  return { index: Number(index), of: Number(of) }
}

export default defineCommand({
  meta: { name: 'layer', description: 'The whole layer, from (x, router logits) to y, beside its peers and the limit' },
  args,
  async run({ args: given }) {
    const { layerTable } = await import('../sections/layer.js')
    if (given.merge) {
      const [{ mergeLayerResults }, { summarise }] = await Promise.all([
        import('../layer/merge.js'),
        import('../layer/standing.js'),
      ])
      const result = mergeLayerResults(given._.map((file) => ({ file, result: readJson('merge', file) as never })))
      const { missing } = summarise(result.rows)
      if (missing.length > 0) progress(`cells of the anchors without a row: ${missing.join(', ')}`)
      return deliver(result, given, () => layerTable(result))
    }
    if (given._.length > 0) throw new RangeError(`--merge: needed where files are given, such as ${given._[0]}`)
    const part = given.part === undefined ? null : parsePart(given.part)
    const { chooseCells, partOf } = await import('../layer/cells.js')
    const cells = chooseCells({
      ...(given.shapes === undefined ? {} : { shapes: parseShapes(given.shapes) }),
      ...(given.tokens === undefined ? {} : { tokens: numbers('tokens', given.tokens) }),
      ...(given.skew === undefined ? {} : { skew: Number(given.skew) === 0 ? 0 : number('skew', given.skew, true) }),
    })
    const options = {
      cells: part === null ? cells : partOf(cells, part),
      device: checkedDevice(given.device),
      peers: given.peers === 'none' ? [] : given.peers.split(','),
      peerBudgetSeconds: number('peer-budget', given['peer-budget'], true),
      budgetMs: number('budget-ms', given['budget-ms'], true),
      seed: seed('seed', given.seed),
      graphs: given.eager !== true,
      invariance: given['without-invariance'] !== true,
      onProgress: progress,
      // Minutes of measurement that are not lost when the peers are cut off.
      onOwn: (own: object) => {
        if (given.out !== undefined) writeWhole(given.out, resultText(own))
      },
    }
    const { layerBench } = await import('../layer/bench.js')
    const result = await layerBench(options)
    deliver(result, given, () => layerTable(result))
    if (result.peersError !== null) progress(`peers: ${result.peersError}`)
    // The file has every cell that could be measured, but a script should see that some could not.
    if ((result.failed ?? []).length > 0) process.exitCode = 1
  },
})
