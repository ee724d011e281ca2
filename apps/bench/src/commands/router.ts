/** `nexus-bench router` */
import { defineCommand } from 'citty'
import {
  checkedDevice,
  deliver,
  deviceArg,
  number,
  numbers,
  outputArgs,
  progress,
  seed,
  torchPeer,
} from './arguments.js'

const args = {
  routers: {
    type: 'string',
    description: "routers, as EXPERTS:topk by commas: the models' own by default",
    default: '8:2,64:8,128:8,256:8',
  },
  tokens: { type: 'string', description: 'token counts, by commas', default: '1,8,64,512,4096,16384' },
  peers: { type: 'string', description: "'torch', or 'none'", default: 'torch' },
  counters: { type: 'boolean', description: 'count the bytes that move at L2, by ncu where it is installed' },
  once: {
    type: 'string',
    description: 'measure nothing: one call of each EXPERTS:topk:tokens, for a profiler',
    valueHint: 'LIST',
  },
  'budget-ms': { type: 'string', description: 'milliseconds of timing for a cell', default: '60' },
  seed: { type: 'string', description: 'seed of the logits', default: '1' },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'The router alone: softmax, top-k, renormalise and buckets by expert, from logits. The result is checked against float64 and a counting ' +
  'sort first. Times are of a call as a node of a graph, beside PyTorch’s own; bytes beside what separate kernels and one pass must move.' +
  '\n\nTry: nexus-bench router --routers 128:8 --tokens 64,16384 --counters'

function parseRouter(text: string) {
  const [experts, topK, ...more] = text.split(':').map((each) => number('routers', each))
  if (experts === undefined || topK === undefined || more.length > 0 || topK > experts) {
    throw new RangeError(`--routers: '${text}' is not EXPERTS:topk`)
  }
  return { experts, topK }
}

function parseOnce(text: string) {
  const [experts, topK, tokens, ...more] = text.split(':').map((each) => number('once', each))
  if (experts === undefined || topK === undefined || tokens === undefined || more.length > 0) {
    throw new RangeError(`--once: '${text}' is not EXPERTS:topk:tokens`)
  }
  return { experts, topK, tokens }
}

export default defineCommand({
  meta: {
    name: 'router',
    description: 'The router alone, with its buckets, beside its peers and the bytes it must move',
  },
  args,
  async run({ args: given }) {
    const device = checkedDevice(given.device)
    const first = seed('seed', given.seed)
    if (given.once !== undefined) {
      const once = given.once.split(',').map(parseOnce)
      const [{ routeOnce }, { asCell }] = await Promise.all([
        import('../primitives/counters.js'),
        import('../primitives/router-calls.js'),
      ])
      return routeOnce(
        once.map(({ experts, topK, tokens }) => asCell(experts, topK, tokens)),
        first,
        device,
      )
    }
    const peers = torchPeer(given.peers)
    const options = {
      device,
      routers: given.routers.split(',').map(parseRouter),
      tokens: numbers('tokens', given.tokens),
      peers,
      counters: given.counters === true,
      budgetMs: number('budget-ms', given['budget-ms'], true),
      seed: first,
      onProgress: progress,
    }
    const [{ routerBench }, { routerTable }] = await Promise.all([
      import('../primitives/router.js'),
      import('../sections/router.js'),
    ])
    const result = await routerBench(options)
    deliver(result, given, () => routerTable(result))
    if (result.peersError !== null) progress(`peers: ${result.peersError}`)
  },
})
