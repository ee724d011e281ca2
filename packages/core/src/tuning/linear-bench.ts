/**
 * One grouped linear layer on the device, with which variants are run and timed as a layer's recorded step runs them: launches follow each
 * other in a graph, and go over copies of the weights and over several routings, so that weights come from memory and not from a cache.
 */
import { type DeviceName, NexusError, type Stream, Tensor } from '@nexus/native'
import { binding, bufferOf, call, deviceIndex, dtypeCode, type RawVariantCandidate, streamOf } from '../native.js'
import type { LinearSpec } from './linears.js'
import type { Routing } from './routing.js'
import { type LoadName, launchCount, loads, type Series, StreamTimer } from './series.js'

/** Rows of an output that are compared, at its begin, middle and end. */
const windowRows = 48
/** Relative error (Frobenius) that two correct variants can have: twice the kernels' own bound. */
const tolerance = { f32: 1e-4, bf16: 1e-2, f16: 1e-2 } as const

/** One linear layer at one number of tokens. */
export class LinearBench {
  readonly linear: LinearSpec
  readonly rows: number
  readonly candidates: readonly RawVariantCandidate[]
  readonly #stream: Stream
  readonly #weights: readonly Tensor[]
  readonly #input: Tensor
  readonly #output: Tensor
  readonly #routed: Readonly<Record<LoadName, readonly { readonly offsets: Tensor; readonly order: Tensor }[]>>
  readonly #timer: StreamTimer
  readonly #owned: (Tensor | StreamTimer)[] = []

  /** @param weights copies of [numExperts, n, k] that launches go over */
  constructor(
    linear: LinearSpec,
    weights: readonly Tensor[],
    tokens: number,
    routed: Readonly<Record<LoadName, readonly Routing[]>>,
    device: DeviceName,
    stream: Stream,
  ) {
    this.linear = linear
    this.rows = tokens * linear.rowsPerToken
    this.#stream = stream
    this.#weights = weights
    this.candidates = call((b) => b.routerKernels.candidates(deviceIndex(device), linear.raw, this.rows))
    const own = <T extends Tensor | StreamTimer>(made: T): T => {
      this.#owned.push(made)
      return made
    }
    try {
      const on = { device, stream }
      const { k, n, gated, dtype } = linear
      const inputs = linear.gather ? tokens : this.rows
      this.#input = own(Tensor.randn([inputs, k], { dtype, ...on, seed: 7 }))
      this.#output = own(Tensor.empty([this.rows, gated ? n / 2 : n], { dtype, ...on }))
      const upload = ({ offsets, order }: Routing) => ({
        offsets: own(Tensor.from(offsets, [offsets.length], { dtype: 'i32', ...on })),
        order: own(Tensor.from(order, [order.length], { dtype: 'i32', ...on })),
      })
      this.#routed = { even: routed.even.map(upload), skewed: routed.skewed.map(upload) }
      this.#timer = own(new StreamTimer(device, stream))
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /**
   * Runs every candidate by both loads and compares its rows with the heuristic's.
   * @throws NexusError naming the variant that computes something else
   */
  async check(): Promise<void> {
    const own = this.candidates.find(({ heuristic }) => heuristic)
    if (own === undefined)
      throw new NexusError('ERR_NEXUS_INTERNAL', `${this.linear.name}: no candidate is the heuristic's`)
    for (const load of loads) {
      const want = await this.#outputOf(own.name, load)
      for (const { name } of this.candidates) {
        const error = relativeError(await this.#outputOf(name, load), want)
        if (error <= tolerance[this.linear.dtype]) continue
        throw new NexusError(
          'ERR_NEXUS_INTERNAL',
          `${name} and ${own.name} disagree on ${this.linear.name} at ${this.rows} rows (relative error ${error}): a kernel is wrong`,
        )
      }
    }
  }

  /** Microseconds of one launch, roughly: how many of them a sample needs. The second of two, which are not rotated far. */
  async estimateUs(variant: string): Promise<number> {
    this.#launch(variant, 'even', 0)
    return this.#timer.us(() => this.#launch(variant, 'even', 1))
  }

  /** A recorded series of launches. */
  series(variant: string, load: LoadName, estimateUs: number): Series {
    const rotation = Math.max(this.#weights.length, this.#routed[load].length)
    return this.#timer.series(launchCount(rotation, estimateUs), (i) => this.#launch(variant, load, i))
  }

  [Symbol.dispose](): void {
    for (const made of this.#owned) made.dispose()
  }

  #launch(variant: string, load: LoadName, i: number): void {
    const { linear, rows } = this
    const all = this.#routed[load]
    const { offsets, order } = all[i % all.length] ?? {}
    if (offsets === undefined || order === undefined) throw new RangeError(`${load}: expected at least one routing`)
    const weights = this.#weights[i % this.#weights.length]
    if (weights === undefined) throw new RangeError('weights: expected at least one copy')
    const stream = streamOf(this.#stream)
    binding().routerKernels.groupedLinear(
      stream,
      linear.raw,
      rows,
      linear.gather ? linear.rowsPerToken : 1,
      linear.gather,
      linear.scatter,
      bufferOf(this.#input),
      bufferOf(weights),
      0,
      bufferOf(offsets),
      bufferOf(order),
      bufferOf(this.#output),
      variant,
    )
  }

  /** Some rows of what a variant writes over memory of NaNs. */
  async #outputOf(variant: string, load: LoadName): Promise<Float32Array> {
    const { native } = binding()
    const [stream, output] = [streamOf(this.#stream), bufferOf(this.#output)]
    native.bufferFill(stream, output, 0xff)
    this.#launch(variant, load, 0)
    const width = this.#output.shape[1] ?? 0
    const dtype = this.linear.dtype
    const size = dtype === 'f32' ? 4 : 2
    const parts: Float32Array[] = []
    const count = Math.min(windowRows, this.rows)
    for (const first of new Set([0, (this.rows - count) >> 1, this.rows - count])) {
      const read = await native.download(stream, output, first * width * size, count * width, dtypeCode[dtype], 'f32')
      if (read instanceof Float32Array) parts.push(read)
    }
    const rows = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0))
    let at = 0
    for (const part of parts) {
      rows.set(part, at)
      at += part.length
    }
    return rows
  }
}

/** NaN where one of them has a NaN. */
function relativeError(got: Float32Array, want: Float32Array): number {
  let difference = 0
  let norm = 0
  for (const [i, value] of want.entries()) {
    difference += ((got[i] ?? Number.NaN) - value) ** 2
    norm += value ** 2
  }
  return norm === 0 ? (difference === 0 ? 0 : Number.POSITIVE_INFINITY) : Math.sqrt(difference / norm)
}
