/**
 * The error classes of all Nexus packages. Callers branch on the class or on `code`; an argument that is wrong is a TypeError or
 * RangeError instead, naming it.
 */

/** Stable identifiers of failures; the message may change, the code does not. */
export type NexusErrorCode =
  | 'ERR_NEXUS_NATIVE_LOAD'
  | 'ERR_NEXUS_DEVICE'
  | 'ERR_NEXUS_OUT_OF_MEMORY'
  | 'ERR_NEXUS_ALLOCATION'
  | 'ERR_NEXUS_GRAPH_CAPTURE'
  | 'ERR_NEXUS_CHECKPOINT'
  | 'ERR_NEXUS_TUNE_FILE'
  | 'ERR_NEXUS_UNSUPPORTED'
  | 'ERR_NEXUS_DISPOSED'
  | 'ERR_NEXUS_INTERNAL'

/** Base of every error that Nexus itself raises. `cause` holds the error beneath, where there is one. */
export class NexusError extends Error {
  override name = 'NexusError'
  readonly code: NexusErrorCode

  constructor(code: NexusErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** The native addon was not found, or cannot be loaded; the message lists what was tried and how to build it. */
export class NativeLoadError extends NexusError {
  override name = 'NativeLoadError'

  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NEXUS_NATIVE_LOAD', message, options)
  }
}

/** A CUDA call failed. */
export class DeviceError extends NexusError {
  override name = 'DeviceError'
  /** CUDA's own name, such as `cudaErrorIllegalAddress`; `null` when the failure has none. */
  readonly nativeError: string | null

  constructor(message: string, options?: ErrorOptions & { readonly nativeError?: string | null }) {
    super('ERR_NEXUS_DEVICE', message, options)
    this.nativeError = options?.nativeError ?? null
  }
}

/** Device or host memory ran out. */
export class OutOfMemoryError extends NexusError {
  override name = 'OutOfMemoryError'
  /** Bytes that were asked for; `null` when unknown. */
  readonly requested: number | null
  /** Bytes that were free when it failed; `null` when unknown. */
  readonly free: number | null

  constructor(
    message: string,
    options?: ErrorOptions & { readonly requested?: number | null; readonly free?: number | null },
  ) {
    super('ERR_NEXUS_OUT_OF_MEMORY', message, options)
    this.requested = options?.requested ?? null
    this.free = options?.free ?? null
  }
}

/** The slices of a plan do not fit on the device. */
export class AllocationError extends NexusError {
  override name = 'AllocationError'

  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NEXUS_ALLOCATION', message, options)
  }
}

/** A step could not be captured as a graph. */
export class GraphCaptureError extends NexusError {
  override name = 'GraphCaptureError'

  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NEXUS_GRAPH_CAPTURE', message, options)
  }
}

/** A checkpoint cannot be read, or does not hold what was expected. */
export class CheckpointError extends NexusError {
  override name = 'CheckpointError'
  readonly file: string
  /** The tensor concerned; `null` when it is the file as a whole. */
  readonly tensor: string | null

  constructor(message: string, options: ErrorOptions & { readonly file: string; readonly tensor?: string | null }) {
    super('ERR_NEXUS_CHECKPOINT', message, options)
    this.file = options.file
    this.tensor = options.tensor ?? null
  }
}

/** This device, build or shape cannot do what was asked. */
export class UnsupportedError extends NexusError {
  override name = 'UnsupportedError'

  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NEXUS_UNSUPPORTED', message, options)
  }
}

/** A resource was used after `dispose()`. */
export class DisposedError extends NexusError {
  override name = 'DisposedError'

  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NEXUS_DISPOSED', message, options)
  }
}

const field = (error: object, key: string): unknown => Reflect.get(error, key)
const bytes = (value: unknown): number | null => (typeof value === 'number' ? value : null)

/**
 * The public error of what the addon threw: by its `code`, with the raw error as `cause`. Errors about arguments (TypeError, and RangeError with
 * the code `ERR_NEXUS_INVALID_ARGUMENT`), Nexus errors and values that are no errors are returned as they are.
 */
export function toNexusError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof NexusError) return error
  const options = { cause: error }
  switch (field(error, 'code')) {
    case 'ERR_NEXUS_DEVICE': {
      const native = field(error, 'nativeError')
      return new DeviceError(error.message, { ...options, nativeError: typeof native === 'string' ? native : null })
    }
    case 'ERR_NEXUS_OUT_OF_MEMORY':
      return new OutOfMemoryError(error.message, {
        ...options,
        requested: bytes(field(error, 'requested')),
        free: bytes(field(error, 'available')),
      })
    case 'ERR_NEXUS_UNSUPPORTED':
      return new UnsupportedError(error.message, options)
    case 'ERR_NEXUS_GRAPH_CAPTURE':
      return new GraphCaptureError(error.message, options)
    case 'ERR_NEXUS_DISPOSED':
      return new DisposedError(error.message, options)
    case 'ERR_NEXUS_INTERNAL':
      return new NexusError('ERR_NEXUS_INTERNAL', error.message, options)
    default:
      return error
  }
}
