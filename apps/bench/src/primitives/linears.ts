/** The two linear layers of the experts, each alone, by every kernel variant that computes it. */
import { DeviceError, type RoutedTokens, type Stream, Tensor } from '@nexus/core'
import { errorText } from '../error-text.js'
import { relativeError } from '../float64.js'
import { type Linear, readPart, runLinear, variantsOf } from '../native.js'
import type { Shape } from '../shapes.js'
import { timeByGraph } from '../timing.js'
import type { PhaseTime } from './phases.js'

/** A linear layer by one variant. */
export interface LinearTime extends Omit<PhaseTime, 'phase'> {
  readonly phase: 'linear1' | 'linear2'
  readonly chosen: boolean
}

interface Input {
  readonly routed: RoutedTokens
  readonly w1: Tensor
  readonly w2: Tensor
}

/** Variants may differ in the order of their sums: that much, and no more. */
const tolerance = 1e-2
/** Rows of an output that are compared, at its begin, middle and end. */
const compared = 16

/** What was timed, and what was not: a variant that fails, or computes something else than the chosen one, is no reason to lose the others. */
export interface LinearTimes {
  readonly times: readonly LinearTime[]
  readonly failed: readonly { readonly variant: string; readonly why: string }[]
}

/**
 * @param x [tokens, hidden]
 * @returns nothing at all with an addon that names no variants
 */
export async function timeLinears(
  stream: Stream,
  device: 'cpu' | 'cuda',
  shape: Shape,
  x: Tensor,
  inputs: readonly Input[],
  expertsHit: number,
  budgetMs: number,
): Promise<LinearTimes> {
  const { hidden, inter, experts, topK } = shape
  const rows = (x.shape[0] ?? 0) * topK
  const options = { dtype: 'bf16', device, stream } as const
  const h = Tensor.empty([rows, inter], options)
  const y = Tensor.empty([rows, hidden], options)
  const times: LinearTime[] = []
  const failed: { variant: string; why: string }[] = []
  try {
    for (const first of [true, false]) {
      const linear: Linear = first
        ? { experts, k: hidden, n: 2 * inter, first }
        : { experts, k: inter, n: hidden, first }
      const variants = variantsOf(device, linear, rows)
      if (variants === null) return { times, failed }
      const [input, output, width] = first ? [x, h, inter] : [h, y, hidden]
      const callsOf = (variant: string) =>
        inputs.map(
          ({ routed: { offsets, order }, w1, w2 }) =>
            () =>
              runLinear(
                stream,
                linear,
                { rows, topK, variant },
                { input, weight: first ? w1 : w2, offsets, order, output },
              ),
        )
      const outputOf = async (variant: string) => {
        callsOf(variant)[0]?.()
        const count = Math.min(compared, rows)
        const starts = [...new Set([0, (rows - count) >> 1, rows - count])]
        return Promise.all(starts.map((start) => readPart(output, start * width, count * width)))
      }
      // The chosen one last: the second layer reads what it has written.
      const own = variants.find(({ chosen }) => chosen)
      if (own === undefined) throw new RangeError('variants: none of them is the chosen one')
      const want = await outputOf(own.name)
      for (const { name, chosen } of [...variants.filter((each) => each !== own), own]) {
        try {
          const error = relativeError(await outputOf(name), want)
          if (!(error <= tolerance)) {
            throw new RangeError(`it computes something else than ${own.name}: relative error ${error}`)
          }
          const { medianUs, intervalUs } = await timeByGraph(stream, callsOf(name), { budgetMs })
          times.push({
            phase: first ? 'linear1' : 'linear2',
            chosen,
            us: medianUs,
            intervalUs,
            bytes: 2 * (expertsHit * linear.n * linear.k + (first ? rows / topK : rows) * linear.k + rows * width),
            flop: 2 * rows * linear.n * linear.k,
            variants: [name],
          })
        } catch (error) {
          // Of a device that has failed nothing more can be had.
          if (error instanceof DeviceError) throw error
          failed.push({
            variant: `linear${first ? 1 : 2}, ${name}`,
            why: errorText(error),
          })
        }
      }
    }
    return { times, failed }
  } finally {
    await stream.synchronize()
    h.dispose()
    y.dispose()
  }
}
