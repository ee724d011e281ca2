/** Which of several models, each fitted at one load, stands for another load. */
import { checkInteger, checkNumber } from '@nexus/native'

/**
 * The regime nearest by ratio to so many assignments (tokens · topK); no assignments count as one.
 * @throws RangeError when there are no regimes, or `assignments` is negative
 */
export function nearestRegime<R extends { readonly assignments: number }>(
  regimes: readonly R[],
  assignments: number,
): R {
  checkInteger('regimes.length', regimes.length, 1)
  const wanted = Math.log(Math.max(1, checkNumber('assignments', assignments, 0)))
  const distance = (regime: R) => Math.abs(Math.log(Math.max(1, regime.assignments)) - wanted)
  return regimes.reduce((best, regime) => (distance(regime) < distance(best) ? regime : best))
}
