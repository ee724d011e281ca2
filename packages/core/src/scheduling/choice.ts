/**
 * The choice among strategies: the least predicted time, with hysteresis. A prediction is corrected by what the strategy's steps were seen to take
 * (a factor for each, the mean of the others' where a strategy was not run yet), so that a model which flatters one of them is found out after
 * it was tried once. Pure bookkeeping: no device, no clock.
 */
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

/** Weight of a new measurement in the correction. */
const learning = 0.2
/** Measurements before a correction is believed. */
const enough = 3

const us = (value: number): string => `${value.toFixed(1)} us`
const sliced = (strategy: StrategyName): boolean => strategy === 'tiered' || strategy === 'cooperative'

export class Chooser {
  readonly #options: ChooserOptions
  readonly #measured = new Map<StrategyName, { ratio: number; samples: number }>()
  #current: StrategyName | null = null
  #since = 0

  constructor(options: ChooserOptions) {
    this.#options = options
  }

  /** A step of `strategy` took `measuredUs` where the model says `modelledUs`. */
  observe(strategy: StrategyName, measuredUs: number, modelledUs: number): void {
    if (!(measuredUs > 0) || !(modelledUs > 0)) return
    const ratio = measuredUs / modelledUs
    const seen = this.#measured.get(strategy)
    if (seen === undefined) this.#measured.set(strategy, { ratio, samples: 1 })
    else {
      seen.samples++
      seen.ratio += Math.max(learning, 1 / seen.samples) * (ratio - seen.ratio)
    }
  }

  /**
   * @param step the layer's step
   * @param modelled what could be run, in the order of preference among equals, with the model's time; `null` while no load is known
   * @param basis what the load is, for the reason
   */
  choose(
    step: number,
    modelled: readonly { readonly strategy: StrategyName; readonly us: number | null }[],
    basis: string,
  ): Choice {
    const usual = this.#usual()
    const candidates = modelled.map(({ strategy, us: time }): Candidate => {
      const correction = this.#trusted(strategy) ?? usual
      return { strategy, predictedUs: time === null ? null : time * correction, correction }
    })
    const first = candidates[0]
    if (first === undefined) throw new RangeError('modelled: expected at least one candidate, got none')
    const current = candidates.find(({ strategy }) => strategy === this.#current)
    const known = candidates.filter(({ predictedUs }) => predictedUs !== null)
    const decide = (strategy: StrategyName, reason: string): Choice => {
      if (strategy !== this.#current) this.#since = step
      this.#current = strategy
      return { strategy, reason, candidates }
    }
    if (known.length === 0) {
      const kept = current ?? first
      return decide(kept.strategy, `${kept.strategy}: no load is known yet`)
    }
    const time = (each: Candidate): number => each.predictedUs ?? Number.POSITIVE_INFINITY
    const best = known.reduce((least, each) => (time(each) < time(least) ? each : least))
    const others = known.filter((each) => each !== best).map((each) => `${each.strategy} ${us(time(each))}`)
    const against = others.length === 0 ? '' : ` against ${others.join(', ')}`
    if (current === undefined || current === best) {
      const verdict = best.strategy === 'fused' && known.some((c) => sliced(c.strategy)) ? 'slicing does not pay: ' : ''
      return decide(best.strategy, `${best.strategy}: ${verdict}${us(time(best))}${against} by ${basis}`)
    }
    const gain = 1 - time(best) / time(current)
    const percent = `${(100 * gain).toFixed(1)} % sooner`
    if (gain < this.#options.leastGain) {
      const least = `less than ${(100 * this.#options.leastGain).toFixed(0)} %`
      return decide(current.strategy, `${current.strategy} kept: ${best.strategy} would end ${percent}, ${least}`)
    }
    const stayed = step - this.#since
    if (stayed < this.#options.dwellSteps) {
      const dwell = `taken ${stayed} steps ago, it stays for ${this.#options.dwellSteps}`
      return decide(current.strategy, `${current.strategy} kept: ${dwell}; ${best.strategy} would end ${percent}`)
    }
    return decide(best.strategy, `${best.strategy}: ${us(time(best))}${against} by ${basis}, ${percent}`)
  }

  #trusted(strategy: StrategyName): number | null {
    const seen = this.#measured.get(strategy)
    return seen === undefined || seen.samples < enough ? null : seen.ratio
  }

  /** The correction of a strategy that was not measured: what the measured ones have in common. */
  #usual(): number {
    const ratios = [...this.#measured.values()].filter(({ samples }) => samples >= enough).map(({ ratio }) => ratio)
    return ratios.length === 0 ? 1 : ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length
  }
}
