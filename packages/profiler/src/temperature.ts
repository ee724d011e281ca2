/**
 * Which experts are hot, warm and cold.
 *
 * Experts are ranked by count (equal counts: the lower number first). With p_e the share of expert e and P_e the
 * share of all experts ranked before it, its position is m_e = P_e + p_e / 2, the middle of its stretch of the cumulative
 * load. An expert is
 *
 *     hot    when  m_e <= hotShare       and  p_e * E >= contrast
 *     cold   when  m_e >= 1 - coldShare  and  p_e * E <= 1 / contrast
 *     warm   otherwise
 *
 * and one that is hot (cold) already stays so until it is past a boundary moved out by the hysteresis: hotShare + hysteresis and
 * contrast * (1 - hysteresis), or 1 - coldShare - hysteresis and (1 + hysteresis) / contrast. So a load on the edge does not flap
 * between slices. The position of the first in the ranking counts as 0: an expert with nearly all of the load is hot, though the
 * middle of its stretch may lie beyond hotShare.
 */
export type Temperature = 'hot' | 'warm' | 'cold' | 'unknown'

/** Boundaries of the temperatures; the names are those of the profiler's options. */
export interface TemperatureRule {
  readonly hotShare: number
  readonly coldShare: number
  readonly contrast: number
  readonly hysteresis: number
}

/**
 * Temperatures of all experts.
 * @param counts - assignments per expert, not all 0
 * @param before - the temperatures so far, for the hysteresis
 */
export function classify(
  counts: ArrayLike<number>,
  before: readonly Temperature[],
  rule: TemperatureRule,
): Temperature[] {
  const result = Array.from({ length: counts.length }, (_, e) => before[e] ?? 'unknown')
  new Classifier(counts.length).classify(Float64Array.from(counts), result, rule)
  return result
}

/**
 * Classifies the same experts over and over. The hysteresis needs every step's temperatures, so each step is ranked; but a window's counts change
 * little from one step to the next, and the ranking of the last step is nearly that of this one.
 */
export class Classifier {
  readonly #experts: number
  /** Experts by rank at the last step: where the search for the ranking begins, and no part of the result. */
  readonly #order: Int32Array
  /** Counts by rank. */
  readonly #ranked: Float64Array

  constructor(experts: number) {
    this.#experts = experts
    this.#order = Int32Array.from({ length: experts }, (_, e) => e)
    this.#ranked = new Float64Array(experts)
  }

  /**
   * @param counts - assignments per expert, not all 0
   * @param temperatures - those so far; replaced in place
   */
  classify(counts: Float64Array, temperatures: Temperature[], rule: TemperatureRule): void {
    const experts = this.#experts
    const order = this.#order
    const ranked = this.#ranked
    this.#rank(counts)
    let total = 0
    for (let e = 0; e < experts; e++) total += counts[e] ?? 0
    const { hotShare, coldShare, contrast, hysteresis } = rule
    let cumulative = 0
    for (let rank = 0; rank < experts; rank++) {
      const expert = order[rank] ?? 0
      const share = (ranked[rank] ?? 0) / total
      const position = rank === 0 ? 0 : cumulative + share / 2
      cumulative += share
      const level = share * experts
      const was = temperatures[expert]
      const wasHot = was === 'hot'
      const wasCold = was === 'cold'
      const hot = position <= hotShare + (wasHot ? hysteresis : 0) && level >= contrast * (wasHot ? 1 - hysteresis : 1)
      const cold =
        position >= 1 - (coldShare + (wasCold ? hysteresis : 0)) && level <= (wasCold ? 1 + hysteresis : 1) / contrast
      temperatures[expert] = hot ? 'hot' : cold ? 'cold' : 'warm'
    }
  }

  /** By insertion into the last ranking; sorted anew where that is no better than a ranking of anything. */
  #rank(counts: Float64Array): void {
    const experts = this.#experts
    const order = this.#order
    const ranked = this.#ranked
    let moves = 16 * experts
    for (let i = 0; i < experts; i++) {
      const expert = order[i] ?? 0
      const count = counts[expert] ?? 0
      let at = i
      for (; at > 0; at--) {
        const other = order[at - 1] ?? 0
        const its = ranked[at - 1] ?? 0
        if (its > count || (its === count && other < expert)) break
        order[at] = other
        ranked[at] = its
      }
      order[at] = expert
      ranked[at] = count
      moves -= i - at
      if (moves < 0) break
    }
    if (moves >= 0) return
    order.sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b)
    for (let i = 0; i < experts; i++) ranked[i] = counts[order[i] ?? 0] ?? 0
  }
}
