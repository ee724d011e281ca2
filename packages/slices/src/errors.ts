/** The failure of an allocation: an `AllocationError` (code `ERR_NEXUS_ALLOCATION`) that says what was asked and what is free. */
import { AllocationError } from '@nexus/native'

export class SliceAllocationError extends AllocationError {
  override name = 'SliceAllocationError'
  /** SMs that were asked for; `null` when the failure is not about an amount. */
  readonly requestedSms: number | null
  /** SMs that could have been given; `null` when the failure is not about an amount. */
  readonly freeSms: number | null
  /** What is wrong with a policy's decision, one sentence each; empty when the failure is not a policy's. */
  readonly violations: readonly string[]

  constructor(
    message: string,
    options?: ErrorOptions & {
      readonly requestedSms?: number
      readonly freeSms?: number
      readonly violations?: readonly string[]
    },
  ) {
    super(message, options)
    this.requestedSms = options?.requestedSms ?? null
    this.freeSms = options?.freeSms ?? null
    this.violations = options?.violations ?? []
  }
}
