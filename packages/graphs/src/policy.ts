/** When a step is worth a graph: a pure function, checked at every answer. */
import { checkInteger, describe, GraphCaptureError } from '@nexus/native'

/** What a policy is asked. */
export interface CaptureQuestion {
  readonly key: string
  /** Eager steps of this key so far, since its graph was last evicted: at least 1. */
  readonly uses: number
  /** Bytes of all graphs now. */
  readonly bytesInUse: number
  readonly budgetBytes: number
  /** Bytes of this key's last graph, else the mean of those that are there; `null` while nothing is known. */
  readonly estimateBytes: number | null
}

/** Says whether a step without a graph is recorded now. Pure: same question, same answer. */
export interface CapturePolicy {
  readonly name: string
  shouldCapture(question: CaptureQuestion): boolean
}

/** A policy threw (its error is the `cause`) or answered with something else than true or false. Nothing was run or recorded. */
export class CapturePolicyError extends GraphCaptureError {
  override name = 'CapturePolicyError'
}

/** Asks, and refuses what is no answer. */
export function ask(policy: CapturePolicy, question: CaptureQuestion): boolean {
  let answer: unknown
  try {
    answer = policy.shouldCapture(question)
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : describe(cause)
    throw new CapturePolicyError(`policy '${policy.name}' threw: ${why}`, { cause })
  }
  if (typeof answer === 'boolean') return answer
  throw new CapturePolicyError(`policy '${policy.name}': expected true or false, got ${describe(answer)}`)
}

/** @throws TypeError naming `options.policy` */
export function checkPolicy(policy: unknown): CapturePolicy {
  const { name, shouldCapture } = (policy ?? {}) as Partial<Record<keyof CapturePolicy, unknown>>
  if (typeof name !== 'string' || name === '' || typeof shouldCapture !== 'function') {
    throw new TypeError(`options.policy: expected a CapturePolicy (name, shouldCapture), got ${describe(policy)}`)
  }
  return policy as CapturePolicy
}

/**
 * After so many eager steps: what is used once or twice is not worth the milliseconds and the memory of a graph.
 * @param uses 1 or more
 */
function after(uses = 3): CapturePolicy {
  checkInteger('uses', uses, 1)
  return { name: `after ${uses} uses`, shouldCapture: (question) => question.uses >= uses }
}

/** As soon as it can be: the first step of a key is always eager, for it sets up what a capture must not. */
function always(): CapturePolicy {
  return { name: 'always', shouldCapture: () => true }
}

function never(): CapturePolicy {
  return { name: 'never', shouldCapture: () => false }
}

/** The built-in policies, as functions that make them. */
export const capturePolicies = { after, always, never } as const
