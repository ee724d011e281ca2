/** Exit codes: one meaning each, part of the command's contract (`nexus-demo --help` lists them). */
export const exitCode = {
  ok: 0,
  /** The proof failed, a checkpoint could not be read, or the demo itself went wrong. */
  failed: 1,
  usage: 2,
  /** The addon cannot be loaded, or the device that was asked for cannot be used. */
  unavailable: 3,
  interrupted: 130,
  terminated: 143,
} as const

/** The user's mistake on the command line. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** The run was stopped from outside; whoever catches it says nothing. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted'
}

/** The checkpoint is one that Nexus cannot read; the device is not to blame, whatever the code of the error beneath. */
export class CheckpointRefused extends Error {
  override readonly name = 'CheckpointRefused'
  readonly code: string

  constructor(cause: Error) {
    super(cause.message, { cause })
    this.code = codeOf(cause)
  }
}

/** What `--json` says when there is no report. */
export interface ErrorReport {
  readonly schema: 'nexus-demo/error/1'
  readonly ok: false
  readonly error: { readonly code: string; readonly message: string; readonly exitCode: number }
}

/** The code of an error: `ERR_NEXUS_*` from the library, `ERR_DEMO_USAGE` for the command line, else its class. */
export function codeOf(error: unknown): string {
  if (error instanceof UsageError) return 'ERR_DEMO_USAGE'
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code
  return error instanceof Error ? error.name : 'Error'
}

const unavailableCodes = new Set([
  'ERR_NEXUS_NATIVE_LOAD',
  'ERR_NEXUS_UNSUPPORTED',
  'ERR_NEXUS_DEVICE',
  'ERR_NEXUS_OUT_OF_MEMORY',
])

export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return exitCode.usage
  if (error instanceof Interrupted) return exitCode.interrupted
  if (error instanceof CheckpointRefused) return exitCode.failed
  return unavailableCodes.has(codeOf(error)) ? exitCode.unavailable : exitCode.failed
}
