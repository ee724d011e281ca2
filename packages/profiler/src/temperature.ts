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
  const experts = counts.length
  let total = 0
  for (let e = 0; e < experts; e++) total += counts[e] ?? 0
  const ranked = Array.from({ length: experts }, (_, e) => e).sort(
    (a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b,
  )
  const result = new Array<Temperature>(experts).fill('warm')
  let cumulative = 0
  for (const [rank, expert] of ranked.entries()) {
    const share = (counts[expert] ?? 0) / total
    const position = rank === 0 ? 0 : cumulative + share / 2
    cumulative += share
    const level = share * experts
    const was = before[expert]
    const hotShare = rule.hotShare + (was === 'hot' ? rule.hysteresis : 0)
    const coldShare = rule.coldShare + (was === 'cold' ? rule.hysteresis : 0)
    const hotLevel = rule.contrast * (was === 'hot' ? 1 - rule.hysteresis : 1)
    const coldLevel = (was === 'cold' ? 1 + rule.hysteresis : 1) / rule.contrast
    if (position <= hotShare && level >= hotLevel) result[expert] = 'hot'
    else if (position >= 1 - coldShare && level <= coldLevel) result[expert] = 'cold'
  }
  return result
}
