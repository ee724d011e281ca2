/**
 * The choice among strategies: the least predicted time, with hysteresis. A prediction is corrected by what the strategy's steps were seen to take
 * (a factor for each in each token bucket, the mean of the others' where a strategy was not run yet), so that a model which flatters one of
 * them is found out after it was tried once. Pure bookkeeping: no device, no clock.
 */
import { median } from './median.js'
import type { StrategyName } from './options.js'

/** One strategy that could be run. */
export interface Candidate {
  readonly strategy: StrategyName
  /** Microseconds of the experts' work by the cost model, corrected by what was measured; `null` while no load is known. */
  readonly predictedUs: number | null
  /** The correction: measured over modelled, 1 while nothing was measured. */
  readonly correction: number
}

export interface Choice {
  readonly strategy: StrategyName
  /** One sentence for people. */
  readonly reason: string
  readonly candidates: readonly Candidate[]
}

export interface ChooserOptions {
  /** How much sooner another strategy has to end, as a part of the step. */
  readonly leastGain: number
  /** Steps for which a strategy stays once it was taken. */
  readonly dwellSteps: number
}

/** Measurements before a correction is believed; it is the median of the last few. */
const enough = 3
const lastFew = 5

/** What is known of one token bucket: a strategy that is good with many rows an expert may be bad with few. */
interface Bucket {
  readonly ratios: Map<StrategyName, number[]>
  current: StrategyName | null
  since: number
  /** How the current one was taken: on the model's word, by measurements while others were to be tried, or against all. */
  taken: 'unmeasured' | 'early' | 'settled'
}

const us = (value: number): string => `${value.toFixed(1)} us`
const nothing: ReadonlySet<StrategyName> = new Set()
const sliced = (strategy: StrategyName): boolean => strategy === 'tiered' || strategy === 'cooperative'

export class Chooser {
  readonly #options: ChooserOptions
  readonly #buckets = new Map<number, Bucket>()

  constructor(options: ChooserOptions) {
    this.#options = options
  }

  /** A step of `strategy` took `measuredUs` where the model says `modelledUs`. @param bucket its token bucket */
  observe(strategy: StrategyName, measuredUs: number, modelledUs: number, bucket = 0): void {
    if (!(measuredUs > 0) || !(modelledUs > 0)) return
    const { ratios } = this.#bucket(bucket)
    const seen = ratios.get(strategy) ?? []
    seen.push(measuredUs / modelledUs)
    if (seen.length > lastFew) seen.shift()
    ratios.set(strategy, seen)
  }

  /**
   * @param step the layer's step
   * @param modelled what could be run, in the order of preference among equals, with the model's time; `null` while no load is known
   * @param basis what the load is, for the reason
   * @param bucket token bucket of the load: each has its own measurements, and its own strategy that stays
   * @param unready strategies that are not to be taken before they were tried
   */
  choose(
    step: number,
    modelled: readonly { readonly strategy: StrategyName; readonly us: number | null }[],
    basis: string,
    bucket = 0,
    unready: ReadonlySet<StrategyName> = nothing,
  ): Choice {
    const state = this.#bucket(bucket)
    const usual = this.#usual(state)
    const candidates = modelled.map(({ strategy, us: time }): Candidate => {
      const correction = this.#trusted(state, strategy) ?? usual
      return { strategy, predictedUs: time === null ? null : time * correction, correction }
    })
    const first = candidates[0]
    if (first === undefined) throw new RangeError('modelled: expected at least one candidate, got none')
    const current = candidates.find(({ strategy }) => strategy === state.current)
    const measured = ({ strategy }: Candidate) => this.#trusted(state, strategy) !== null
    const ready = (each: Candidate) => each === current || measured(each) || !unready.has(each.strategy)
    const open = candidates.filter((each) => each.predictedUs !== null && !ready(each))
    const later = open.length === 0 ? '' : `; not tried: ${open.map(({ strategy }) => strategy).join(', ')}`
    const decide = (taken: Candidate, reason: string): Choice => {
      const { strategy } = taken
      if (strategy !== state.current) {
        state.since = step
        state.taken = state.current !== null && measured(taken) ? 'early' : 'unmeasured'
      }
      if (state.taken === 'early' && open.length === 0) state.taken = 'settled'
      state.current = strategy
      return { strategy, reason: reason + later, candidates }
    }
    const known = candidates.filter((each) => each.predictedUs !== null && ready(each))
    if (known.length === 0) {
      const kept = current ?? first
      return decide(kept, `${kept.strategy}: no load is known yet`)
    }
    const time = (each: Candidate): number => each.predictedUs ?? Number.POSITIVE_INFINITY
    const best = known.reduce((least, each) => (time(each) < time(least) ? each : least))
    // Where the best one was measured, a figure that was not is marked; where it was not, none is more than the model's.
    const said = measured(best) ? 'measured ' : ''
    const figure = (each: Candidate) => `${us(time(each))}${said && !measured(each) ? ' by the model' : ''}`
    const others = known.filter((each) => each !== best).map((each) => `${each.strategy} ${figure(each)}`)
    const against = others.length === 0 ? '' : ` against ${others.join(', ')}`
    const times = `${said}${us(time(best))}${against}`
    if (current === undefined || current === best) {
      const verdict = best.strategy === 'fused' && known.some((c) => sliced(c.strategy)) ? 'slicing does not pay: ' : ''
      return decide(best, `${best.strategy}: ${verdict}${times} by ${basis}`)
    }
    const both = measured(best) && measured(current)
    const gain = 1 - time(best) / time(current)
    const percent = `${(100 * gain).toFixed(1)} % sooner${both ? ` (${times})` : ''}`
    const stayed = step - state.since
    const young = stayed < this.#options.dwellSteps
    // What was taken early has no right of its own against what was tried right after it; what was taken unmeasured, only that of the margin.
    const early = both && young && state.taken === 'early'
    // A timed step does not overlap with its neighbours, which flatters slices: a tie is fused's.
    const tied = both && best.strategy === 'fused' && sliced(current.strategy)
    if (gain < this.#options.leastGain && !early && !tied) {
      const least = `less than ${(100 * this.#options.leastGain).toFixed(0)} %`
      return decide(current, `${current.strategy} kept: ${best.strategy} would end ${percent}, ${least}`)
    }
    if (young && !(both && state.taken !== 'settled')) {
      const dwell = `taken ${stayed} steps ago, it stays for ${this.#options.dwellSteps}`
      return decide(current, `${current.strategy} kept: ${dwell}; ${best.strategy} would end ${percent}`)
    }
    return decide(best, `${best.strategy}: ${times} by ${basis}, ${(100 * gain).toFixed(1)} % sooner`)
  }

  #bucket(bucket: number): Bucket {
    const found = this.#buckets.get(bucket)
    if (found !== undefined) return found
    const made: Bucket = { ratios: new Map(), current: null, since: 0, taken: 'unmeasured' }
    this.#buckets.set(bucket, made)
    return made
  }

  #trusted({ ratios }: Bucket, strategy: StrategyName): number | null {
    const seen = ratios.get(strategy)
    return seen === undefined || seen.length < enough ? null : median(seen)
  }

  /** The correction of a strategy that was not measured: what the measured ones have in common. */
  #usual({ ratios }: Bucket): number {
    const trusted = [...ratios.values()].filter(({ length }) => length >= enough).map(median)
    return trusted.length === 0 ? 1 : trusted.reduce((sum, ratio) => sum + ratio, 0) / trusted.length
  }
}
