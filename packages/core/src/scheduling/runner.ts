/**
 * The path of a step: which native plan, by a graph or not, then one native call. Everything else (profile, policy, choice) happens every few
 * steps, behind the step, in the controller; what it wants is taken over at the beginning of the next step, in stream order.
 */
import { capturePolicies, GraphCache, tokenBucket } from '@nexus/graphs'
import { DeviceError, Event, Stream } from '@nexus/native'
import {
  type CountRingHandle,
  captureOn,
  countRingOf,
  type LayerHandle,
  type RawStepStats,
  streamOf,
} from '../native.js'
import type { LayerConfig } from '../options.js'
import { Controller, usualSteps } from './control.js'
import { EnergyWindow } from './energy.js'
import { type ExecPlan, ExecPlans, fusedWanted, type LaneTrace } from './exec.js'
import { LayerStep, type RecordedStep, type StepCall } from './graphs.js'
import { type Scheduling, type StrategyName, strategyNames } from './options.js'
import { StepTimer } from './timer.js'
import type { Trial } from './trials.js'

/** Native plans that stay: a switch back to one of them builds nothing. */
const keptPlans = 8

/** Part of the host's time that decisions may take where the caller has not said how often they are made. */
const controlShare = 0.02

/** What a step is given, natively. */
export type StepArgs = Omit<StepCall, 'stream'>

/** A step that was queued. */
export interface QueuedStep {
  readonly strategy: StrategyName
  /** With `measured` only. */
  readonly stats: Promise<RawStepStats> | undefined
}

export class StepRunner {
  readonly control: Controller
  readonly energy: EnergyWindow | null
  readonly graphs: GraphCache<RecordedStep> | null
  /** With 'auto' only, whose predictions it corrects. */
  readonly #timer: StepTimer | null
  readonly #layer: LayerHandle
  readonly #home: Stream
  readonly #ring: CountRingHandle | null
  readonly #plans: ExecPlans
  readonly #fused: ExecPlan
  readonly #every: number
  readonly #throttled: boolean
  readonly #maxTokens: number
  readonly #mayConfine: boolean
  readonly #homeWidth: number
  readonly #streams = new WeakMap<Stream, { readonly id: number; readonly confined: boolean }>()
  readonly #steps: Record<StrategyName, number> = { fused: 0, tiered: 0, streams: 0, cooperative: 0 }
  #step: LayerStep | null = null
  #exec: ExecPlan
  /** The stream of the last step, its number, and whether it keeps to a slice. */
  #last: Stream
  #streamId = 0
  #confined = false
  #slicedStreams = 0
  #queued = 0
  #sinceUpdate = 0
  /** Milliseconds of the clock before which a throttled decision does not come. */
  #notBefore = 0

  /** @throws what making the parts throws; nothing is left then */
  constructor(scheduling: Scheduling, config: LayerConfig, layer: LayerHandle, stream: Stream) {
    this.#layer = layer
    this.#home = stream
    this.#last = stream
    this.#every = scheduling.updateEverySteps ?? usualSteps
    this.#throttled = scheduling.updateEverySteps === null
    this.#maxTokens = scheduling.graphs?.maxTokens ?? 0
    this.#mayConfine = scheduling.strategy === 'auto'
    this.#homeWidth = stream.width
    const undo: { dispose(): void }[] = []
    const made = <T extends { dispose(): void }>(part: T): T => {
      undo.push(part)
      return part
    }
    try {
      this.energy = scheduling.energy && made(new EnergyWindow(scheduling.energy, config.device))
      this.control = made(new Controller(scheduling, config, this.energy))
      const { ring, slicing } = this.control
      this.#ring = ring && countRingOf(ring)
      const { graphs } = scheduling
      this.graphs =
        graphs &&
        made(
          new GraphCache<RecordedStep>({
            memoryBudgetBytes: graphs.memoryBudgetBytes,
            policy: capturePolicies.after(graphs.captureAfter),
          }),
        )
      this.#timer = scheduling.strategy === 'auto' ? made(new StepTimer(config.device)) : null
      const site = { config, layer, enforcer: slicing?.enforcer ?? null, trace: scheduling.trace }
      this.#plans = made(new ExecPlans(site, keptPlans, (plan) => this.#forget(plan)))
      this.#exec = this.#plans.get(this.control.wanted, stream)
      this.#fused = this.#exec.strategy === 'fused' ? this.#exec : this.#plans.get(fusedWanted, stream)
      this.#plans.keep(this.#fused)
      this.#place(stream)
    } catch (error) {
      for (const part of undo.reverse()) part.dispose()
      throw error
    }
  }

  /**
   * The strategy's and the graphs' part of a step; errors are raw ones of the addon or public ones. A step that becomes part of a graph of
   * the caller's is recorded by the plan that holds, and leaves everything here as it is: it does not run now, and its launches are not seen.
   */
  run(stream: Stream, args: StepArgs): QueuedStep {
    const on = streamOf(stream)
    const recording = captureOn(stream) !== null
    const { tokens } = args
    const trial = recording ? null : this.#trialOf(stream, tokens)
    const start = trial === null ? 0 : performance.now()
    let tried: ExecPlan | null = null
    if (!recording) {
      if (this.control.wanted !== this.#exec.wanted) this.#follow(stream)
      if (trial?.during === true) tried = this.#tried(trial, stream)
      if (stream !== this.#last) this.#place(stream)
    }
    const confined = recording ? this.#placeOf(stream).confined : this.#confined
    const exec = tried ?? (confined ? this.#within(stream) : this.#exec)
    const call: StepCall = { stream: on, ...args }
    this.#step ??= new LayerStep(this.#layer, this.#ring, call)
    const step = this.#step
    step.call = call
    step.plan = exec.handle
    step.foreign = recording
    const byGraph = this.graphs !== null && tokens <= this.#maxTokens && !recording
    // A step without tokens replays the graph of one.
    const bucket = byGraph ? tokenBucket(tokens === 0 ? 1 : tokens) : 0
    const key = byGraph ? exec.graphKey(this.#streamId, args.logits !== null, bucket) : ''
    const wantsTime = trial === null ? this.#timer?.idle : trial.timing && this.#timer?.armed
    const timer = wantsTime && this.#representative(stream, recording, key) ? this.#timer : null
    timer?.begin(stream)
    let stats: Promise<RawStepStats> | undefined
    if (this.graphs === null || !byGraph) stats = step.eager()
    else {
      step.tokens = tokens
      step.bucket = bucket
      stats = this.graphs.run(key, step).value
    }
    timer?.end(stream, exec.strategy, tokens)
    trial?.stepped(exec.strategy, timer !== null, (performance.now() - start) * 1e3)
    if (!recording) {
      this.#queued++
      this.#steps[exec.strategy]++
      if (++this.#sinceUpdate >= this.#every) this.#update()
    }
    return { strategy: exec.strategy, stats }
  }

  /** Steps by strategy. */
  get steps(): Readonly<Record<StrategyName, number>> {
    return Object.fromEntries(strategyNames.map((name) => [name, this.#steps[name]])) as Record<StrategyName, number>
  }

  get queued(): number {
    return this.#queued
  }

  /** The lanes of the plan that the last steps ran with. */
  trace(): Promise<LaneTrace> {
    orderBehindStream(this.#home, this.#last)
    return this.#exec.trace(this.#home)
  }

  /** Queued steps still run to their end. */
  dispose(): void {
    this.graphs?.dispose()
    this.#timer?.dispose()
    this.#plans.dispose()
    this.control.dispose()
    this.energy?.dispose()
  }

  #place(stream: Stream): void {
    const { id, confined } = this.#placeOf(stream)
    this.#last = stream
    this.#streamId = id
    this.#confined = confined
  }

  #placeOf(stream: Stream): { readonly id: number; readonly confined: boolean } {
    const known = this.#streams.get(stream)
    if (known !== undefined) return known
    const { width } = stream
    // What is recorded in a slice stays there; streams of the whole device can replay each other's graphs.
    const id = width >= this.control.device.sms ? 0 : ++this.#slicedStreams
    const place = { id, confined: stream !== this.#home && width < this.#homeWidth }
    this.#streams.set(stream, place)
    return place
  }

  /** Whether a step is worth timing: on the layer's own stream, and launched as most are. */
  #representative(stream: Stream, recording: boolean, key: string): boolean {
    return stream === this.#home && !recording && (key === '' || this.graphs?.has(key) === true)
  }

  #update(): void {
    const start = performance.now()
    if (this.#throttled && start < this.#notBefore) return
    this.#sinceUpdate = 0
    this.control.update(this.#queued, this.#timer?.take())
    const end = performance.now()
    this.#notBefore = end + (end - start) / controlShare
  }

  /** Takes over what the controller wants. Steps that still run read the lane table: its update comes behind the last of them. */
  #follow(stream: Stream): void {
    const { wanted } = this.control
    try {
      orderBehindStream(stream, this.#last)
      const before = this.#exec
      this.#exec = this.#plans.get(wanted, stream)
      // What an earlier use of this plan has left in its trace is not of this one.
      if (this.#exec !== before) this.#exec.clearTrace(stream)
    } catch (error) {
      if (isDeviceError(error)) throw error
      this.control.keep(this.#queued, this.#exec.wanted, error)
    }
  }

  /** The trial that a step may be part of: it is on the layer's own stream, and as large as the steps that the trial is for. */
  #trialOf(stream: Stream, tokens: number): Trial | null {
    const trial = this.control.trials?.running ?? null
    if (trial === null || stream !== this.#home || !this.control.usual(tokens)) return null
    return tokenBucket(tokens) === trial.bucket ? trial : null
  }

  /** The plan of the strategy that is tried; `null` where it cannot be built, which ends the trial. */
  #tried({ wanted }: Trial, stream: Stream): ExecPlan | null {
    try {
      orderBehindStream(stream, this.#last)
      return this.#plans.get(wanted, stream)
    } catch (error) {
      if (isDeviceError(error)) throw error
      this.control.trialFailed(this.#queued, error)
      return null
    }
  }

  /** The plan for a step in somebody's slice: lanes with streams of their own would leave it. */
  #within(stream: Stream): ExecPlan {
    const { strategy } = this.#exec
    if (strategy === 'fused' || strategy === 'cooperative') return this.#exec
    if (this.#mayConfine) return this.#fused
    throw new RangeError(
      `stream: strategy '${strategy}' runs lanes on streams of its own, expected a stream as wide as the layer's (${this.#homeWidth} SMs), got one of a slice of ${stream.width}`,
    )
  }

  #forget(plan: ExecPlan): void {
    if (this.graphs?.disposed === false) for (const key of plan.graphKeys()) this.graphs.evict(key)
  }
}

/** A device that has failed is no reason to go on, also where something else is said about it. */
function isDeviceError(error: unknown): boolean {
  return (
    error instanceof DeviceError || (error instanceof Error && error.cause !== undefined && isDeviceError(error.cause))
  )
}

/** What is queued on `stream` from now on starts after all that was queued on `before`, also where that was disposed of. */
function orderBehindStream(stream: Stream, before: Stream): void {
  const last = Stream.successor(before)
  if (last === stream) return
  using point = Event.create(stream.device)
  point.record(last)
  stream.wait(point)
}
