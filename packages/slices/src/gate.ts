/** When a decision is followed: sizes that have just changed stay a while, and small changes of size are not made. */
import type { CurrentPlacement, Decision } from './policy.js'

export interface GateOptions {
  /** Steps for which sizes stay once they have changed. */
  readonly dwellSteps: number
  /** Fewest SMs that a change has to move. */
  readonly hysteresisSms: number
}

/** What the gate lets through: what was decided, or what is, and why. */
export interface Gated {
  readonly sms: readonly number[]
  readonly sliceOf: readonly number[]
  /** Why the decision was not followed; `null` when it was. */
  readonly keptBecause: 'dwell' | 'hysteresis' | null
  /** SMs that change slices, come or go. */
  readonly movedSms: number
}

/**
 * Experts may move at any time, for that is free as long as the sizes stay; the experts of a decision whose sizes are not followed
 * stay too, because they were placed for those sizes.
 */
export function gate(current: CurrentPlacement | null, decision: Decision, step: number, options: GateOptions): Gated {
  const { sms, sliceOf } = decision
  if (current === null || current.sliceOf.length !== sliceOf.length) {
    return { sms, sliceOf, keptBecause: null, movedSms: 0 }
  }
  let gained = 0
  let lost = 0
  for (let s = 0; s < Math.max(sms.length, current.sms.length); s++) {
    const change = (sms[s] ?? 0) - (current.sms[s] ?? 0)
    if (change > 0) gained += change
    else lost -= change
  }
  const moved = Math.max(gained, lost)
  const total = (sizes: readonly number[]) => sizes.reduce((sum, n) => sum + n, 0)
  // Other SMs to share out than before: what is cannot go on.
  if (moved === 0 || total(sms) !== total(current.sms)) {
    return { sms, sliceOf, keptBecause: null, movedSms: moved }
  }
  const keptBecause =
    step - current.sinceStep < options.dwellSteps ? 'dwell' : moved < options.hysteresisSms ? 'hysteresis' : null
  if (keptBecause === null) return { sms, sliceOf, keptBecause, movedSms: moved }
  return { sms: current.sms, sliceOf: current.sliceOf, keptBecause, movedSms: 0 }
}
