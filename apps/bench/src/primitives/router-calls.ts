/** Routers with their inputs, as they are timed and counted. */
import { type RoutedTokens, Router, Stream, Tensor } from '@nexus/core'
import type { Cell } from '../layer/cells.js'
import { Owned } from '../owned.js'
import { cellLogits } from '../random.js'

/** Inputs that calls rotate over: logits come from the router's product in a layer, so they may be in the cache. */
const inputs = 4

/** A router as the cell of a layer: peers need a shape, and no weights. */
export const asCell = (experts: number, topK: number, tokens: number): Cell => ({
  shape: { name: `router-${experts}-${topK}`, hidden: 16, inter: 16, experts, topK },
  tokens,
  skew: 0,
})

/** A router with its inputs, and a result for each of them. */
export function routerCalls(cell: Cell, device: 'cpu' | 'cuda', seed: number, count = inputs) {
  const { shape, tokens } = cell
  const { experts: numExperts, topK } = shape
  const owned = new Owned()
  const { own } = owned
  const host = cellLogits(tokens, numExperts, count, 0, seed + tokens)
  const router = own(new Router({ numExperts, topK, device, normalize: 'sum' }))
  const stream = Stream.default(device)
  const calls = host.map((each) => {
    const logits = own(Tensor.from(each, [tokens, numExperts], { device }))
    const out: RoutedTokens = own(router.route(null, logits))
    return { out, run: () => void router.route(null, logits, { out }) }
  })
  return { host, calls, stream, dispose: () => owned.dispose() }
}
