/**
 * Device time of a call: events around batches of calls that are queued ahead of the device, as a serving loop does, so that neither an event nor
 * the host's latency is in the figure. Many batches give the median and how sure it is.
 */
import { Event, Graph, type Stream } from '@nexus/core'
import { median } from './median.js'
import { Owned } from './owned.js'
import { medianInterval } from './scheduling/statistics.js'

/** Microseconds of one call. */
export interface Timing {
  readonly medianUs: number
  readonly minUs: number
  readonly maxUs: number
  /** The 95 % interval of the median. */
  readonly intervalUs: readonly [low: number, high: number]
  readonly samples: number
}

export interface TimingOptions {
  /** Roughly how long to time, all batches together: a device that is busy for longer runs hotter, and slower. */
  readonly budgetMs: number
  /** Batches, at most; where one takes longer than its part of the budget there are fewer, at least five. @default 15 */
  readonly samples?: number
  /** Calls of a batch, at most: those queued ahead must not fill the launch queue. @default 4000 */
  readonly maxCalls?: number
}

export function timingOf(samples: readonly number[]): Timing {
  const interval = medianInterval(samples)
  if (interval === null) throw new RangeError('samples: expected at least one, got none')
  return {
    medianUs: median(samples),
    minUs: Math.min(...samples),
    maxUs: Math.max(...samples),
    intervalUs: interval,
    samples: samples.length,
  }
}

/** Times the calls, all of them in turn in each batch: what they touch rotates. The first batches are not counted. */
export async function timeCalls(
  stream: Stream,
  calls: readonly (() => void)[],
  { budgetMs, samples = 15, maxCalls = 4000 }: TimingOptions,
): Promise<Timing> {
  const [start, end] = [Event.create(stream.device), Event.create(stream.device)]
  try {
    const batch = async (rounds: number) => {
      start.record(stream)
      for (let r = 0; r < rounds; r++) for (const call of calls) call()
      end.record(stream)
      await stream.synchronize()
      return (start.elapsedMs(end) * 1e3) / (rounds * calls.length)
    }
    await batch(1)
    const estimateUs = Math.max(await batch(1), 0.1)
    const roundUs = estimateUs * calls.length
    const fitting = (budgetMs * 1e3) / samples / roundUs
    const rounds = Math.max(1, Math.ceil(Math.min(maxCalls / calls.length, fitting)))
    const batches = Math.min(samples, Math.max(5, Math.floor((budgetMs * 1e3) / (rounds * roundUs))))
    await batch(rounds)
    const times: number[] = []
    for (let i = 0; i < batches; i++) times.push(await batch(rounds))
    return timingOf(times)
  } finally {
    start.dispose()
    end.dispose()
  }
}

/**
 * Times calls by one graph of `repeats` rounds of them, so that a call costs no launch: as a program does that records all of its layers, and for
 * kernels that are shorter than a launch. Each call must have run on the stream before, and give every result an `out`.
 */
export async function timeByGraph(
  stream: Stream,
  calls: readonly (() => void)[],
  options: TimingOptions & { readonly repeats?: number },
): Promise<Timing> {
  const { repeats = Math.max(1, Math.ceil(16 / calls.length)), ...rest } = options
  const graph = Graph.capture(stream, () => {
    for (let r = 0; r < repeats; r++) for (const call of calls) call()
  })
  try {
    const { medianUs, minUs, maxUs, intervalUs, samples } = await timeCalls(stream, [() => graph.launch(stream)], rest)
    const n = repeats * calls.length
    return {
      medianUs: medianUs / n,
      minUs: minUs / n,
      maxUs: maxUs / n,
      intervalUs: [intervalUs[0] / n, intervalUs[1] / n],
      samples,
    }
  } finally {
    graph.dispose()
  }
}

/** Replays that the peers' harness times, at least and at most. */
const [leastReplays, mostReplays] = [7, 200]

/**
 * Times calls as the peers' harness does, so that a chip which slows down under long work is as warm for both: one graph of `repeats` rounds of
 * the calls, each replay between two events, all queued at once, at least 7 and at most 200 of them within `budgetMs`; the median. Each call must
 * have run on the stream before, and give every result an `out`.
 */
export async function timeReplays(
  stream: Stream,
  calls: readonly (() => void)[],
  { budgetMs, repeats = 1 }: { readonly budgetMs: number; readonly repeats?: number },
): Promise<Timing> {
  using owned = new Owned()
  const { own } = owned
  const graph = own(
    Graph.capture(stream, () => {
      for (let r = 0; r < repeats; r++) for (const call of calls) call()
    }),
  )
  const [start, end] = [own(Event.create(stream.device)), own(Event.create(stream.device))]
  graph.launch(stream)
  start.record(stream)
  graph.launch(stream)
  end.record(stream)
  await stream.synchronize()
  const replayMs = Math.max(start.elapsedMs(end), 1e-2)
  const replays = Math.floor(Math.min(mostReplays, Math.max(leastReplays, budgetMs / replayMs)))
  const marks = Array.from(
    { length: replays },
    () => [own(Event.create(stream.device)), own(Event.create(stream.device))] as const,
  )
  for (const [before, behind] of marks) {
    before.record(stream)
    graph.launch(stream)
    behind.record(stream)
  }
  await stream.synchronize()
  return timingOf(marks.map(([before, behind]) => (before.elapsedMs(behind) * 1e3) / (repeats * calls.length)))
}
