/**
 * Which strategy is tried when. A model cannot tell a strategy that is 10 % faster from one that is 4 times slower; a few steps of it can. A
 * trial is a handful of steps of the layer's own: some timed ones of the strategy that holds, some to warm up the other, some timed
 * ones of it. What trials cost is kept in accounts, so that they stay below `share` of the steps. Pure bookkeeping: no device, no clock.
 */
import type { Wanted } from './exec.js'
import { median } from './median.js'
import type { StrategyName } from './options.js'

/** Part of the steps' time that trials may cost. */
const share = 0.005
/** Steps' time that a layer may spend on first trials before `share` of its steps comes to as much: it is to settle early. */
const advance = 48
/** Steps of a trial that are timed, of either strategy: their median counts. */
const timedSteps = 3
/** Steps of a strategy before its first timed one, at least. */
const warmUps = 2
/** Decisions, and steps at least, until a strategy that was not slower is tried again. */
const againDecisions = 64
const againSteps = 1024
/** A strategy's rest doubles with each further 1 / 8 of a step that it takes longer: 16 times as long for half a step, at most 256 times. */
const restDoublings = 8
const mostDoublings = 8
/** What failed rests this many times as long. */
const failedRest = 16
/** By this part a prediction against another has to change for a trial to count as one of another load: it rests a quarter as long. */
const drifted = 0.1
/** Steps of the layer after which a trial that does not get its steps is given up. */
const patience = 256

/** A strategy that could be run, with the model's time; `null` while no load is known. */
interface Modelled {
  readonly strategy: StrategyName
  readonly us: number | null
}

/** What a trial came to, as plain data. */
export interface TrialReport {
  readonly strategy: StrategyName
  /** The strategy that held. */
  readonly against: StrategyName
  /** Token bucket of the steps. */
  readonly bucket: number
  /** The layer's step that the trial ended after. */
  readonly step: number
  /** Medians of the timed steps; `null` for a trial that failed. */
  readonly us: number | null
  readonly againstUs: number | null
  /** Why there is no result; `null` where there is one. */
  readonly failure: string | null
}

/** The trials of a layer, as plain data. */
export interface TrialStats {
  /** Trials that came to an end, failed ones among them. */
  readonly count: number
  readonly failed: number
  /** Steps that ran with a strategy that was tried. */
  readonly steps: number
  /** What they took longer than the strategy that held would have, in steps of that. */
  readonly extraSteps: number
  /** What is tried now. */
  readonly running: StrategyName | null
  readonly last: TrialReport | null
}

/** One trial: which steps it wants, and what they took. */
export class Trial {
  readonly wanted: Wanted
  readonly against: StrategyName
  readonly bucket: number
  readonly begun: number
  readonly #took = { before: [] as number[], during: [] as number[] }
  readonly #hostUs: number[] = []
  #timedBefore = 0
  #timed = 0

  constructor(wanted: Wanted, against: StrategyName, bucket: number, begun: number) {
    this.wanted = wanted
    this.against = against
    this.bucket = bucket
    this.begun = begun
  }

  /** Whether the next step is the tried strategy's. */
  get during(): boolean {
    return this.#timedBefore >= timedSteps && this.#timed < timedSteps
  }

  /** Whether the next step is to be timed, where it is one that can be. */
  get timing(): boolean {
    return this.#timedBefore < timedSteps || (this.#timed < timedSteps && this.steps >= warmUps)
  }

  /** Steps of the tried strategy. */
  get steps(): number {
    return this.#hostUs.length
  }

  /** A step of the trial was queued by `strategy`, which took the host as long. */
  stepped(strategy: StrategyName, timed: boolean, hostUs: number): void {
    if (strategy === this.wanted.strategy) {
      this.#hostUs.push(hostUs)
      if (timed) this.#timed++
    } else if (strategy === this.against && timed) this.#timedBefore++
  }

  /** What a timed step took. */
  took(strategy: StrategyName, us: number): void {
    if (strategy === this.wanted.strategy) this.#took.during.push(us)
    else if (strategy === this.against) this.#took.before.push(us)
  }

  /** Medians, when all timed steps have finished; `null` before. */
  get result(): { readonly us: number; readonly againstUs: number } | null {
    const { before, during } = this.#took
    if (during.length < timedSteps || before.length < timedSteps) return null
    return { us: median(during), againstUs: median(before) }
  }

  /** What the trial's steps took longer, in steps of the strategy that held: of the device, or of the host where that took longer. */
  extra({ us, againstUs }: { readonly us: number; readonly againstUs: number }): number {
    return this.#hostUs.reduce((sum, host) => sum + Math.max(0, Math.max(us, host) - againstUs), 0) / againstUs
  }
}

/** What is known of a strategy in a bucket from its last trial. */
interface Tried {
  /** The step from which on it may be tried again. */
  readonly from: number
  readonly at: number
  /** What it took as a multiple of what held. */
  readonly ratio: number
  /** Its predicted time as a multiple of the least other's. */
  readonly outlook: number
  /** It could not be built. */
  readonly barred: boolean
}

export class Trials {
  readonly #rest: number
  readonly #mostSteps: number
  readonly #tried = new Map<number, Map<StrategyName, Tried>>()
  #running: Trial | null = null
  #count = 0
  #failed = 0
  #steps = 0
  #extra = 0
  #nextAgain = 0
  #last: TrialReport | null = null

  /**
   * @param every steps from one decision to the next
   * @param captureAfter steps that a graph needs before it is recorded; 0 without graphs
   */
  constructor({ every, captureAfter }: { readonly every: number; readonly captureAfter: number }) {
    this.#rest = Math.max(againSteps, againDecisions * every)
    this.#mostSteps = captureAfter + 16
  }

  get running(): Trial | null {
    return this.#running
  }

  /** The strategies that are not to be taken in this bucket on the word of the model alone: they can be tried, or could not be built. */
  unready(bucket: number, strategies: readonly StrategyName[]): ReadonlySet<StrategyName> {
    const tried = this.#tried.get(bucket)
    return new Set(strategies.filter((name) => name !== 'fused' && tried?.get(name)?.barred !== false))
  }

  /**
   * Begins the trial that is due, if there is one: first what was never tried, in the order of the model.
   * @param held the strategy that holds
   * @param ways what each strategy wants now
   */
  begin(
    step: number,
    bucket: number,
    held: StrategyName,
    modelled: readonly Modelled[],
    ways: readonly Wanted[],
  ): void {
    const running = this.#running
    // What was taken meanwhile is tried by that; what held before will not be timed again.
    const stale = running?.wanted.strategy === held || (running?.against !== held && running?.steps === 0)
    if (running !== null && !stale) return
    this.#running = null
    const tried = this.#tried.get(bucket)
    const due = modelled.filter((each) => {
      if (each.strategy === held || each.us === null) return false
      const last = tried?.get(each.strategy)
      return last === undefined
        ? this.#extra < Math.max(advance, share * step)
        : this.#again(step, last, outlook(each.strategy, modelled))
    })
    const known = ({ strategy }: Modelled) => (tried?.has(strategy) ? 1 : 0)
    due.sort((a, b) => known(a) - known(b) || (a.us ?? 0) - (b.us ?? 0))
    const wanted = ways.find(({ strategy }) => strategy === due[0]?.strategy)
    if (wanted !== undefined) this.#running = new Trial(wanted, held, bucket, step)
  }

  /** Ends the trial that has its result, or will not get one. */
  settle(step: number, modelled: readonly Modelled[]): void {
    const trial = this.#running
    if (trial === null) return
    const { result, against, steps } = trial
    if (result === null) {
      const over = steps > this.#mostSteps
      if (over || step - trial.begun > patience + this.#mostSteps) {
        this.fail(
          step,
          over ? `none of ${steps} steps could be timed` : 'no step of its bucket came that could be timed',
        )
      }
      return
    }
    const { us, againstUs } = result
    this.#extra += trial.extra(result)
    const { strategy } = trial.wanted
    this.#note(trial, strategy, step, us / againstUs, modelled)
    this.#note(trial, against, step, againstUs / us, modelled)
    this.#end(trial, step, { us, againstUs, failure: null })
  }

  /** The trial comes to nothing. @param barred it cannot be built */
  fail(step: number, failure: string, barred = false): void {
    const trial = this.#running
    if (trial === null) return
    const { strategy } = trial.wanted
    // Nothing says what its steps took: as if each had taken twice as long.
    this.#extra += trial.steps
    const from = step + failedRest * this.#rest
    this.#in(trial.bucket).set(strategy, { at: step, from, ratio: 2, outlook: Number.NaN, barred })
    this.#failed++
    this.#end(trial, step, { us: null, againstUs: null, failure })
  }

  stats(): TrialStats {
    return {
      count: this.#count,
      failed: this.#failed,
      steps: this.#steps,
      extraSteps: this.#extra,
      running: this.#running?.wanted.strategy ?? null,
      last: this.#last,
    }
  }

  #in(bucket: number): Map<StrategyName, Tried> {
    const found = this.#tried.get(bucket) ?? new Map<StrategyName, Tried>()
    this.#tried.set(bucket, found)
    return found
  }

  /** Whether what was tried before is due, and its price is there. */
  #again(step: number, { at, from, ratio, outlook: then, barred }: Tried, now: number): boolean {
    const moved = !barred && Math.abs(now / then - 1) > drifted
    const due = moved ? Math.max(at + this.#rest, at + (from - at) / 4) : from
    const price = (warmUps + timedSteps) * Math.max(0, ratio - 1)
    return step >= Math.max(due, this.#nextAgain) && this.#extra + price <= share * step
  }

  #note({ bucket }: Trial, strategy: StrategyName, at: number, ratio: number, modelled: readonly Modelled[]): void {
    const doublings = Math.min(mostDoublings, Math.max(0, restDoublings * (ratio - 1)))
    const from = at + this.#rest * 2 ** doublings
    this.#in(bucket).set(strategy, { at, from, ratio, outlook: outlook(strategy, modelled), barred: false })
  }

  #end(trial: Trial, step: number, result: Pick<TrialReport, 'us' | 'againstUs' | 'failure'>): void {
    const { wanted, against, bucket, steps } = trial
    this.#running = null
    this.#count++
    this.#steps += steps
    this.#nextAgain = step + steps / share
    this.#last = { strategy: wanted.strategy, against, bucket, step, ...result }
  }
}

/** The model's time as a multiple of the least other's. Not the corrected one: a new measurement is no sign of another load. */
function outlook(strategy: StrategyName, modelled: readonly Modelled[]): number {
  const times = (self: boolean) => modelled.filter((each) => (each.strategy === strategy) === self).map(({ us }) => us)
  return (times(true)[0] ?? Number.NaN) / Math.min(...times(false).map((us) => us ?? Number.NaN))
}
