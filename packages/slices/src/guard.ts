/** What stands between a policy and a device: a decision is looked at whole before anything acts on it. */
import { describe } from '@nexus/native'
import { sliceCount } from './arrange.js'
import { SliceAllocationError } from './errors.js'
import type { AllocationPolicy, Constraints, Decision, PolicySnapshot } from './policy.js'

/**
 * What is wrong with a decision, one sentence each; an empty list when it can be followed.
 * @param experts - how many experts there are
 */
export function decisionViolations(value: unknown, constraints: Constraints, experts: number): string[] {
  if (typeof value !== 'object' || value === null) return [`expected a decision, got ${describe(value)}`]
  const { sms, sliceOf, reason } = value as Partial<Record<keyof Decision, unknown>>
  const violations: string[] = []
  if (typeof reason !== 'string' || reason === '')
    violations.push(`reason: expected a sentence, got ${describe(reason)}`)
  if (!Array.isArray(sms) || sms.length === 0) {
    violations.push(`sms: expected an array of at least one size, got ${describe(sms)}`)
  } else violations.push(...sizeViolations(sms, constraints, experts))
  if (!Array.isArray(sliceOf) || sliceOf.length !== experts) {
    violations.push(`sliceOf: expected an array of ${experts} slices, got ${describe(sliceOf)}`)
  } else if (Array.isArray(sms)) violations.push(...placementViolations(sliceOf, sms.length))
  return violations
}

function sizeViolations(sms: readonly unknown[], constraints: Constraints, experts: number): string[] {
  const violations: string[] = []
  const { granularity, minSms } = constraints
  let total = 0
  let odd = 0
  for (let s = 0; s < sms.length; s++) {
    const n = sms[s]
    if (typeof n !== 'number' || !Number.isInteger(n) || n <= 0) {
      violations.push(`sms[${s}]: expected a positive integer, got ${describe(n)}`)
      continue
    }
    total += n
    if (n % granularity !== 0) odd++
    // All of a device smaller than the least slice is still one slice.
    if (n < minSms && sms.length > 1) violations.push(`sms[${s}]: expected at least ${minSms}, got ${n}`)
  }
  if (violations.length > 0) return violations
  if (total !== constraints.sms) violations.push(`sms: expected a sum of ${constraints.sms}, got ${total}`)
  if (odd > 1) violations.push(`sms: expected multiples of ${granularity}, but for one slice; ${odd} are not`)
  const most = sliceCount(constraints, experts)
  if (sms.length > most) violations.push(`sms: expected at most ${most} slices, got ${sms.length}`)
  return violations
}

function placementViolations(sliceOf: readonly unknown[], slices: number): string[] {
  const violations: string[] = []
  const used = new Uint8Array(slices)
  for (let e = 0; e < sliceOf.length; e++) {
    const s = sliceOf[e]
    if (typeof s === 'number' && Number.isInteger(s) && s >= 0 && s < slices) used[s] = 1
    else if (violations.length < 8)
      violations.push(`sliceOf[${e}]: expected a slice from 0 to ${slices - 1}, got ${describe(s)}`)
  }
  if (violations.length === 0 && sliceOf.length > 0) {
    for (let s = 0; s < slices; s++) if (used[s] === 0) violations.push(`slice ${s} has SMs and no expert`)
  }
  return violations
}

/** Whether a decision, nearly always, has no violation at all: the same questions, without anything made to say what is wrong. */
function isSound(made: Decision, constraints: Constraints, experts: number): boolean {
  if (typeof made !== 'object' || made === null) return false
  const { sms, sliceOf, reason } = made
  if (typeof reason !== 'string' || reason === '' || !Array.isArray(sms) || !Array.isArray(sliceOf)) return false
  const slices = sms.length
  if (slices > 31 || sliceOf.length !== experts) return false
  let used = 0
  for (let e = 0; e < experts; e++) {
    const s: unknown = sliceOf[e]
    if (typeof s !== 'number' || !(s >= 0 && s < slices) || (s | 0) !== s) return false
    used |= 1 << s
  }
  // Every slice has an expert, and no size is wrong.
  return used === 2 ** slices - 1 && sizeViolations(sms, constraints, experts).length === 0
}

const giving = new WeakSet<AllocationPolicy['decide']>()

/**
 * Says that each decision of a policy is in arrays that were made for it and that nobody else has: it need not be copied. Kept by the function, so that
 * one that is wrapped is again a policy as any other. @internal
 */
export function givesAway<T extends AllocationPolicy>(policy: T): T {
  giving.add(policy.decide)
  return policy
}

/** A policy may use its arrays again: what is looked at here must be what is acted on later. */
function ownCopy(made: Decision): Decision {
  if (typeof made !== 'object' || made === null) return made
  const { sms, sliceOf, reason } = made
  return { sms: copied(sms), sliceOf: copied(sliceOf), reason }
}

const copied = (list: readonly number[]) => (Array.isArray(list) ? list.slice() : list)

/**
 * A policy's decision, checked.
 * @throws SliceAllocationError when the policy throws (its error is the `cause`) or its decision cannot be followed (`violations`)
 */
export function decide(policy: AllocationPolicy, snapshot: PolicySnapshot): Decision {
  let made: Decision
  try {
    const { decide: own } = policy
    made = policy.decide(snapshot)
    if (!giving.has(own)) made = ownCopy(made)
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : describe(cause)
    throw new SliceAllocationError(`policy '${policy.name}' threw: ${why}`, { cause })
  }
  if (isSound(made, snapshot.constraints, snapshot.load.length)) return made
  const violations = decisionViolations(made, snapshot.constraints, snapshot.load.length)
  if (violations.length === 0) return made
  const more = violations.length > 1 ? ` (and ${violations.length - 1} more)` : ''
  throw new SliceAllocationError(`policy '${policy.name}' decided what cannot be done: ${violations[0]}${more}`, {
    violations,
  })
}
