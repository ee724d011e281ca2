/** Failures of assignments: `AllocationError`s (code `ERR_NEXUS_ALLOCATION`) that say what is wrong. */
import { AllocationError } from '@nexus/native'

/** A strategy threw (its error is the `cause`), or assigned what cannot be (`violations`). */
export class AssignmentError extends AllocationError {
  override name = 'AssignmentError'
  /** What is wrong, one sentence each; empty when the strategy threw. */
  readonly violations: readonly string[]

  constructor(message: string, options?: ErrorOptions & { readonly violations?: readonly string[] }) {
    super(message, options)
    this.violations = options?.violations ?? []
  }
}
