/** The phases of a layer's step as primitives, one by one: each is timed as a node of a graph, weights rotated beyond the cache. */
import { combine, GroupedExperts, Router, Stream, Tensor } from '@nexus/core'
import { checkedTokens, layerRows, productRows, relativeError } from '../float64.js'
import { layerOptions } from '../layer-options.js'
import { expertBytes, inputCount, weightCopies } from '../limits.js'
import { readPart, runProduct } from '../native.js'
import { Owned } from '../owned.js'
import { cellLogits } from '../random.js'
import type { Shape } from '../shapes.js'
import { timeByGraph } from '../timing.js'
import { type LinearTimes, timeLinears } from './linears.js'

export type Phase = 'logits' | 'route' | 'experts' | 'combine'

/** One phase of a step. */
export interface PhaseTime {
  readonly phase: Phase
  readonly us: number
  readonly intervalUs: readonly [low: number, high: number]
  /** Bytes that it must move, and products that it must make; its rates are these over its time. */
  readonly bytes: number
  readonly flop: number
  /** Kernel variant of each linear layer; empty for phases that have no choice. */
  readonly variants: readonly string[]
}

/** Weights of a shape, with copies, for any number of tokens. */
export class PhaseWeights {
  readonly #owned = new Owned()
  readonly router: Tensor
  readonly copies: { readonly experts: GroupedExperts; readonly w1: Tensor; readonly w2: Tensor }[] = []

  constructor(
    readonly shape: Shape,
    readonly device: 'cpu' | 'cuda',
    readonly seed: number,
  ) {
    const { hidden, inter, experts: numExperts } = shape
    const { own } = this.#owned
    const normal = (n: number, dims: number[], scale: number) =>
      own(Tensor.randn(dims, { dtype: 'bf16', device, seed: seed + n, scale }))
    try {
      this.router = normal(0, [numExperts, hidden], hidden ** -0.5)
      const { inputDim, hiddenDim, dtype } = layerOptions(shape, device, 'bf16')
      const spec = { kind: 'gated', numExperts, inputDim, hiddenDim, outputDim: inputDim, dtype, device } as const
      for (let c = 0; c < weightCopies(shape); c++) {
        const w1 = normal(10 * c + 1, [numExperts, 2 * inter, hidden], hidden ** -0.5)
        const w2 = normal(10 * c + 2, [numExperts, hidden, inter], inter ** -0.5)
        const experts = own(new GroupedExperts({ ...spec, weights: [w1, w2] }))
        this.copies.push({ experts, w1, w2 })
      }
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  dispose(): void {
    this.#owned.dispose()
  }
}

/** A step's phases on so many tokens, and how far their result is from float64. */
export interface PhasesOfStep {
  readonly phases: readonly PhaseTime[]
  readonly linears: LinearTimes
  readonly relativeError: number
  readonly expertsHit: number
}

const tolerance = 2e-2

/** @throws RangeError when the result is wrong: nothing is timed then */
export async function timePhases(
  weights: PhaseWeights,
  tokens: number,
  { budgetMs, linears }: { readonly budgetMs: number; readonly linears: boolean },
): Promise<PhasesOfStep> {
  const { shape, device, seed } = weights
  const { hidden, inter, experts: numExperts, topK } = shape
  using owned = new Owned()
  const { own } = owned
  try {
    const router = own(new Router({ numExperts, topK, device }))
    const stream = Stream.default(device)
    const rows = tokens * topK
    const hidden16 = { dtype: 'bf16', device } as const
    const expertRows = own(Tensor.empty([rows, hidden], hidden16))
    const y = own(Tensor.empty([tokens, hidden], hidden16))
    const product = own(Tensor.empty([tokens, numExperts], { dtype: 'f32', device }))
    const host = cellLogits(tokens, numExperts, inputCount(shape, tokens), 0, seed + tokens)
    const x = own(Tensor.randn([tokens, hidden], { ...hidden16, seed: seed + 7 }))
    const inputs = host.map((each, v) => {
      const logits = own(Tensor.from(each, [tokens, numExperts], { device }))
      const copy = weights.copies[v % weights.copies.length]
      if (!copy) throw new RangeError('copies: expected at least one, got none')
      return { logits, routed: own(router.route(null, logits)), ...copy }
    })
    const [first] = inputs
    const [logits] = host
    if (!first || !logits) throw new RangeError('inputs: expected at least one, got none')

    first.experts.forward(x, first.routed, { out: expertRows })
    combine(expertRows, first.routed, { out: y })
    const checked = checkedTokens(shape, tokens)
    const want = await layerRows(shape, first, x, logits, checked)
    const got = await Promise.all(checked.map((token) => readPart(y, token * hidden, hidden)))
    const error = relativeError(got, want)
    if (!(error < tolerance)) {
      throw new RangeError(`the output is wrong: relative error ${error} to float64, expected less than ${tolerance}`)
    }
    runProduct(stream, x, weights.router, product)
    const products = await Promise.all(checked.map((token) => readPart(product, token * numExperts, numExperts)))
    const productError = relativeError(products, await productRows(shape, weights.router, x, checked))
    if (!(productError < 1e-4)) throw new RangeError(`the router's product is wrong: relative error ${productError}`)
    let hit = 0
    for (const { routed } of inputs) {
      for (const count of await routed.counts.toArray()) hit += (count > 0 ? 1 : 0) / inputs.length
    }

    const phase = async (
      name: Phase,
      calls: readonly (() => void)[],
      bytes: number,
      flop: number,
      variants: readonly string[] = [],
    ): Promise<PhaseTime> => {
      for (const call of calls) call()
      const { medianUs, intervalUs } = await timeByGraph(stream, calls, { budgetMs })
      return { phase: name, us: medianUs, intervalUs, bytes, flop, variants }
    }
    const routing = inputs.map(
      ({ logits: given, routed }) =>
        () =>
          void router.route(null, given, { out: routed }),
    )
    const mlp = inputs.map(
      ({ experts, routed }) =>
        () =>
          void experts.forward(x, routed, { out: expertRows }),
    )
    const sum = inputs.map(
      ({ routed }) =>
        () =>
          void combine(expertRows, routed, { out: y }),
    )
    return {
      phases: [
        await phase(
          'logits',
          [() => runProduct(stream, x, weights.router, product)],
          2 * (tokens + numExperts) * hidden + 4 * tokens * numExperts,
          2 * tokens * hidden * numExperts,
        ),
        await phase('route', routing, tokens * numExperts * 4 + rows * 12, 0),
        await phase(
          'experts',
          mlp,
          hit * expertBytes(shape) + 2 * (tokens * hidden + rows * (2 * inter + hidden)),
          6 * rows * inter * hidden,
          first.experts.variant(rows),
        ),
        await phase('combine', sum, 2 * (rows + tokens) * hidden, 2 * rows * hidden),
      ],
      linears: linears ? await timeLinears(stream, device, shape, x, inputs, hit, budgetMs) : { times: [], failed: [] },
      relativeError: error,
      expertsHit: hit,
    }
  } finally {
    await Stream.default(device).synchronize()
  }
}
