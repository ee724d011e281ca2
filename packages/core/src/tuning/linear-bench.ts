/**
 * One grouped linear layer on the device, with which variants are run and timed as a layer's recorded step runs them: launches follow each
 * other in a graph, and go over copies of the weights and over several routings, so that weights come from memory and not from a cache.
 */
import { type DeviceName, Event, Graph, NexusError, type Stream, Tensor } from '@nexus/native'
import { binding, bufferOf, call, deviceIndex, dtypeCode, type RawVariantCandidate, streamOf } from '../native.js'
import type { LinearSpec } from './linears.js'
import type { Routing } from './routing.js'

/** The loads that a variant is measured by. */
export const loads = ['even', 'skewed'] as const
export type LoadName = (typeof loads)[number]

/** Rows of an output that are compared, at its begin, middle and end. */
const windowRows = 48
/** Relative error (Frobenius) that two correct variants can have: twice the kernels' own bound. */
const tolerance = { f32: 1e-4, bf16: 1e-2, f16: 1e-2 } as const
const mostLaunches = 64

/** The weights of a linear layer, for all its buckets. */
export class LinearWeights {
  readonly linear: LinearSpec
  readonly copies: number
  readonly tensor: Tensor

  /** As many copies as are beyond `cacheBytes`, together with those of other rows: at most 64. */
  constructor(linear: LinearSpec, device: DeviceName, stream: Stream, cacheBytes: number, seed: number) {
    const { numExperts, n, k, dtype } = linear
    const bytes = numExperts * n * k * (dtype === 'f32' ? 4 : 2)
    this.linear = linear
    this.copies = Math.max(1, Math.min(64, Math.ceil((2 * cacheBytes) / bytes)))
    const shape = [this.copies * numExperts, n, k]
    this.tensor = Tensor.randn(shape, { dtype, device, stream, seed, scale: 1 / Math.sqrt(k) })
  }

  [Symbol.dispose](): void {
    this.tensor.dispose()
  }
}

/** One linear layer at one number of tokens. */
export class LinearBench {
  readonly linear: LinearSpec
  readonly rows: number
  readonly candidates: readonly RawVariantCandidate[]
  readonly #stream: Stream
  readonly #weights: LinearWeights
  readonly #input: Tensor
  readonly #output: Tensor
  readonly #routed: Readonly<Record<LoadName, readonly { readonly offsets: Tensor; readonly order: Tensor }[]>>
  readonly #start: Event
  readonly #end: Event
  readonly #owned: (Tensor | Event)[] = []

  constructor(
    weights: LinearWeights,
    tokens: number,
    routed: Readonly<Record<LoadName, readonly Routing[]>>,
    device: DeviceName,
    stream: Stream,
  ) {
    const { linear } = weights
    this.linear = linear
    this.rows = tokens * linear.rowsPerToken
    this.#stream = stream
    this.#weights = weights
    this.candidates = call((b) => b.routerKernels.candidates(deviceIndex(device), linear.raw, this.rows))
    const own = <T extends Tensor | Event>(made: T): T => {
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
      this.#start = own(Event.create(device))
      this.#end = own(Event.create(device))
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
    return this.#timed(() => this.#launch(variant, 'even', 1))
  }

  /** A recorded series of launches that lasts about `targetUs`. */
  series(variant: string, load: LoadName, estimateUs: number, targetUs: number): Series {
    const rotation = Math.max(this.#weights.copies, this.#routed[load].length)
    const enough = Math.ceil(targetUs / Math.max(estimateUs, 0.5))
    // A whole rotation where it is affordable.
    const launches = Math.max(
      1,
      Math.min(mostLaunches, enough < rotation && rotation * estimateUs < 4 * targetUs ? rotation : enough),
    )
    const graph = Graph.capture(this.#stream, () => {
      for (let i = 0; i < launches; i++) this.#launch(variant, load, i)
    })
    return {
      launches,
      sampleUs: async () => (await this.#timed(() => graph.launch(this.#stream))) / launches,
      [Symbol.dispose]: () => graph.dispose(),
    }
  }

  [Symbol.dispose](): void {
    for (const made of this.#owned) made.dispose()
  }

  #launch(variant: string, load: LoadName, i: number): void {
    const { linear, rows } = this
    const all = this.#routed[load]
    const { offsets, order } = all[i % all.length] ?? {}
    if (offsets === undefined || order === undefined) throw new RangeError(`${load}: expected at least one routing`)
    const copy = (i % this.#weights.copies) * linear.numExperts * linear.n * linear.k
    const stream = streamOf(this.#stream)
    binding().routerKernels.groupedLinear(
      stream,
      linear.raw,
      rows,
      linear.gather ? linear.rowsPerToken : 1,
      linear.gather,
      linear.scatter,
      bufferOf(this.#input),
      bufferOf(this.#weights.tensor),
      copy,
      bufferOf(offsets),
      bufferOf(order),
      bufferOf(this.#output),
      variant,
    )
  }

  async #timed(work: () => void): Promise<number> {
    this.#start.record(this.#stream)
    work()
    this.#end.record(this.#stream)
    await this.#stream.synchronize()
    return 1e3 * this.#start.elapsedMs(this.#end)
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

/** Launches that were recorded together. */
export interface Series extends Disposable {
  readonly launches: number
  /** Runs them and returns the device time of one, in microseconds. */
  sampleUs(): Promise<number>
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
