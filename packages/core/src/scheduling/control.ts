/**
 * The decisions of a layer, every few steps: the counts that the device has written go to the profiler, its profile to the slice manager,
 * and from plan and load comes what the next steps want. Nothing here waits for the device, and nothing here throws once the layer
 * exists: what fails is reported, and the plan that holds goes on.
 */
import { tokenBucket } from '@nexus/graphs'
import { ExpertProfiler, type ProfilerSnapshot } from '@nexus/profiler'
import { CountRing } from '@nexus/profiler/native'
import {
  type CostByLoad,
  costOfLoad,
  type DeviceDescription,
  describeDevice,
  type Plan,
  predictExpertUs,
} from '@nexus/slices'
import { assignments, StreamPool } from '@nexus/streams'
import type { LayerConfig } from '../options.js'
import { Chooser } from './choice.js'
import { layerCost, predictUs } from './cost.js'
import type { EnergyWindow } from './energy.js'
import { Failures } from './errors.js'
import type { Wanted } from './exec.js'
import type { Scheduling, StrategyName } from './options.js'
import { cooperativeWay, fusedWay, type StepPlan, type StreamSite, streamsWay, tieredWay, type Way } from './plan.js'
import { Slicing } from './slicing.js'
import type { TimedStep } from './timer.js'
import { Trials } from './trials.js'

/** Part of a step by which another strategy has to end sooner. */
const leastGain = 0.03
/** Decisions for which a strategy stays once it was taken. */
const dwellDecisions = 4
/** Part by which a step's tokens may differ from the window's mean for its time to be held against the window's load. */
const unusual = 0.05
/** Steps from one decision to the next, where the caller has not said how many. */
export const usualSteps = 16
/** Steps whose counts are kept until they are read: beyond them a slow reader sees a sample, and takes no longer for it. */
const ringSteps = 128
/** Decisions until what could not be built is tried again. */
const pauseDecisions = 8

interface Load {
  /** Mean assignments of a step, by expert; `null` while none is known. */
  readonly counts: readonly number[] | null
  /** Mean tokens of a step; `null` while they are not known. */
  readonly tokens: number | null
  /** Their token bucket; 0 while they are not known. */
  readonly bucket: number
  /** What they are, for people. */
  readonly basis: string
}

export class Controller {
  readonly profiler: ExpertProfiler | null
  readonly ring: CountRing | null
  readonly slicing: Slicing | null
  readonly streams: StreamSite | null
  /** With 'auto' only, and where the load is known. */
  readonly trials: Trials | null
  readonly failures = new Failures()
  readonly device: DeviceDescription
  readonly #cost: CostByLoad
  readonly #config: LayerConfig
  readonly #strategy: Scheduling['strategy']
  readonly #enforcement: 'auto' | 'hardware' | 'cooperative' | null
  readonly #energy: EnergyWindow | null
  readonly #chooser: Chooser
  #ways: readonly Way[] = []
  #load: Load = { counts: null, tokens: null, bucket: 0, basis: 'no load' }
  #plan: StepPlan
  #wanted: Wanted
  /** What could not be built, and for how many decisions it is left alone. */
  #unbuilt: { readonly key: string; readonly why: string; pause: number } | null = null
  /** Plans decided so far whose strategy was another than the one before. */
  #changes = 0

  /** @throws what making the parts throws; nothing is left then */
  constructor(scheduling: Scheduling, config: LayerConfig, energy: EnergyWindow | null) {
    this.#config = config
    this.#strategy = scheduling.strategy
    this.#enforcement = scheduling.slices?.enforcement ?? null
    this.#energy = energy
    this.device = describeDevice(config.device)
    this.#cost = scheduling.slices?.cost ?? layerCost(config, this.device)
    const every = scheduling.updateEverySteps ?? usualSteps
    this.#chooser = new Chooser({ leastGain, dwellSteps: dwellDecisions * every })
    const { numExperts } = config.rule
    const { slices, streams, profiler, strategy, graphs } = scheduling
    const trials = strategy === 'auto' && profiler !== null
    this.trials = trials ? new Trials({ every, captureAfter: graphs?.captureAfter ?? 0 }) : null
    this.profiler = profiler && new ExpertProfiler({ ...profiler, numExperts })
    this.slicing = slices && new Slicing(slices, strategy, config)
    try {
      const count = streams?.count ?? 0
      const size = count + (config.shared === null ? 0 : 1)
      this.ring =
        this.profiler && new CountRing({ device: config.device, numExperts, capacity: Math.max(ringSteps, 2 * every) })
      this.streams = streams && {
        pool: new StreamPool({ device: config.device, size }),
        assignment: streams.assignment ?? assignments.longestFirst(),
        count,
      }
      const { plan, wanted } = this.#decide(0, this.slicing?.manager.plan ?? null, [])
      this.#plan = plan
      this.#wanted = wanted
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  get plan(): StepPlan {
    return this.#plan
  }

  get wanted(): Wanted {
    return this.#wanted
  }

  get changes(): number {
    return this.#changes
  }

  get lost(): number {
    return this.ring?.stats().lost ?? 0
  }

  /**
   * What one decision cost in profile, policy and choice happens here: every few steps, on the host alone.
   * @param timed steps whose times have arrived since the last one
   */
  update(step: number, timed: readonly TimedStep[] = []): void {
    const grew = this.drain(step)
    const before = this.#plan
    for (const { strategy, ms } of timed) this.trials?.running?.took(strategy, ms * 1e3)
    try {
      const slices = this.#slices(grew)
      if (!grew && slices === before.slices && timed.length === 0) return
      const { plan, wanted } = this.#decide(step, slices, timed)
      const unbuilt = this.#unbuilt
      if (unbuilt !== null && wanted.key === unbuilt.key && unbuilt.pause-- > 0) {
        this.#plan = keptPlan(plan, this.#wanted, unbuilt.why)
        return
      }
      if (plan.strategy !== before.strategy) this.#changes++
      this.#plan = plan
      this.#wanted = wanted
    } catch (error) {
      this.failures.report('plan', step, error)
    }
  }

  /** Takes the counts that have arrived; true when there were any. */
  drain(step: number): boolean {
    const { ring, profiler } = this
    if (ring === null || profiler === null) return false
    try {
      const energyJoules = this.#energy?.stepJoules(step) ?? null
      return ring.drainInto(profiler, { energyJoules }) > 0
    } catch (error) {
      this.failures.report('profile', step, error)
      return false
    }
  }

  /** A measured step, held against the model: it corrects the predictions of the strategy that ran it. */
  observe(strategy: StrategyName, counts: ArrayLike<number>, totalMs: number): void {
    const way = this.#ways.find(({ wanted }) => wanted.strategy === strategy)
    if (this.#strategy !== 'auto' || way === undefined) return
    const { sms, wanted } = way
    let assigned = 0
    for (let e = 0; e < counts.length; e++) assigned += counts[e] ?? 0
    this.#chooser.observe(
      strategy,
      totalMs * 1e3,
      predictUs(this.#cost, counts, { strategy, sms, laneOf: wanted.laneOf }),
      tokenBucket(Math.round(assigned / this.#config.rule.topK)),
    )
  }

  /** Whether a step's load may be taken for the last window's, by its tokens. */
  usual(tokens: number): boolean {
    const { counts, tokens: usual, bucket } = this.#load
    if (counts === null || usual === null || Math.abs(tokens - usual) > unusual * usual) return false
    return tokenBucket(tokens) === bucket
  }

  /** What the running trial is for cannot be built: the steps go on as they were. */
  trialFailed(step: number, error: unknown): void {
    this.failures.report('build', step, error)
    this.trials?.fail(step, error instanceof Error ? error.message : String(error), true)
  }

  /** What is wanted could not be built: the steps go on as they were, and it is tried again later. */
  keep(step: number, wanted: Wanted, error: unknown): void {
    this.failures.report('build', step, error)
    const why = error instanceof Error ? error.message : String(error)
    this.#unbuilt = { key: this.#wanted.key, why, pause: pauseDecisions }
    this.#plan = keptPlan(this.#plan, wanted, why)
    this.#wanted = wanted
  }

  dispose(): void {
    this.slicing?.dispose()
    this.streams?.pool.dispose()
    this.ring?.dispose()
  }

  #slices(grew: boolean): Plan | null {
    if (this.slicing === null) return null
    const { manager, feeds } = this.slicing
    return grew && feeds && this.profiler !== null ? manager.update(this.profiler.snapshot()) : manager.plan
  }

  #decide(step: number, slices: Plan | null, timed: readonly TimedStep[]): { plan: StepPlan; wanted: Wanted } {
    const load = loadOf(this.profiler?.snapshot() ?? null)
    this.#load = load
    for (const { strategy, tokens, ms } of timed) {
      // A step whose counts are not known: its load is taken for the window's.
      if (load.counts !== null && this.usual(tokens)) this.observe(strategy, load.counts, ms)
    }
    const ways = this.#possible(slices, load.counts)
    const modelled = ways.map(({ wanted: { strategy, laneOf }, sms }) => ({
      strategy,
      us: load.counts && predictUs(this.#cost, load.counts, { strategy, sms, laneOf }),
    }))
    const { bucket } = load
    const { trials } = this
    const names = modelled.map(({ strategy }) => strategy)
    trials?.settle(step, modelled)
    const choice = this.#chooser.choose(step, modelled, load.basis, bucket, trials?.unready(bucket, names))
    const wants = ways.map(({ wanted }) => wanted)
    if (bucket > 0) trials?.begin(step, bucket, choice.strategy, modelled, wants)
    const chosen = ways.find(({ wanted }) => wanted.strategy === choice.strategy)
    if (chosen === undefined) throw new RangeError(`strategy: expected a possible one, got ${choice.strategy}`)
    const streams = ways.find(({ wanted }) => wanted.strategy === 'streams')
    const reason = this.#strategy === 'auto' ? choice.reason : asked(choice.reason, slices, chosen.wanted.strategy)
    this.#ways = ways
    return {
      wanted: chosen.wanted,
      plan: {
        strategy: choice.strategy,
        reason,
        step,
        candidates: choice.candidates,
        slices,
        streams:
          streams && this.streams
            ? {
                count: this.streams.count,
                assignment: this.streams.assignment.name,
                streamOf: [...streams.wanted.laneOf],
              }
            : null,
      },
    }
  }

  /** What could be run; with 'auto' in the order of preference among equals. */
  #possible(slices: Plan | null, load: readonly number[] | null): Way[] {
    const { sms } = this.device
    const strategy = this.#strategy
    const allowed = (name: StrategyName) => strategy === 'auto' || strategy === name
    const ways: Way[] = []
    if (allowed('fused')) ways.push(fusedWay(sms))
    if (slices !== null && this.slicing !== null) {
      const hardware = this.slicing.enforcer.mode === 'hardware'
      if (allowed('cooperative') && this.#enforcement !== 'hardware') ways.push(cooperativeWay(slices))
      if (allowed('tiered') && hardware) ways.push(tieredWay(slices, this.#config.shared !== null))
    }
    if (allowed('streams') && this.streams !== null) {
      const each = sms / this.streams.count
      const cost = load && costOfLoad(this.#cost, load)
      const costs = Array.from({ length: this.#config.rule.numExperts }, (_, e) =>
        cost === null ? 1 : predictExpertUs(cost, load?.[e] ?? 0, each),
      )
      ways.push(streamsWay(this.streams, costs, sms))
    }
    return ways
  }
}

/** A plan whose steps go on as they were. */
function keptPlan(plan: StepPlan, { strategy }: Wanted, why: string): StepPlan {
  return { ...plan, strategy, reason: `${strategy} kept: what ${plan.strategy} needs could not be built: ${why}` }
}

/** The load that the next steps are expected to bring: the forecast where the backtest trusts it, else the last window. */
function loadOf(profile: ProfilerSnapshot | null): Load {
  if (profile === null) return { counts: null, tokens: null, bucket: 0, basis: 'no profiler' }
  const { assignments, forecast, windowSteps } = profile
  if (assignments === 0) return { counts: null, tokens: null, bucket: 0, basis: 'no load' }
  const tokens = profile.tokens === null ? null : profile.tokens / windowSteps
  const bucket = tokens === null ? 0 : tokenBucket(Math.round(tokens))
  if (forecast !== null && (forecast.score ?? 1) < 1) {
    return { counts: forecast.counts, tokens, bucket, basis: `the ${forecast.method} forecast` }
  }
  return { counts: profile.experts.map(({ count }) => count / windowSteps), tokens, bucket, basis: 'the last window' }
}

/** The reason of a plan whose strategy the caller has chosen. */
function asked(prediction: string, slices: Plan | null, strategy: StrategyName): string {
  const placed = slices === null ? '' : `; slices: ${slices.reason}`
  return `${strategy} was asked for (${prediction})${placed}`
}
