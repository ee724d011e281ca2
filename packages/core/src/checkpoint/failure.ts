/** The one place where the reader makes its errors, so that every one of them names its file and tensor in the same way. */
import { CheckpointError } from '@nexus/native'

/** Where in a checkpoint something is wrong. */
export interface Place {
  readonly file: string
  readonly tensor?: string | null
  readonly cause?: unknown
}

/** A `CheckpointError` whose message starts with the file and, where there is one, the tensor. */
export function failure(place: Place, problem: string): CheckpointError {
  const tensor = place.tensor ?? null
  const where = tensor === null ? place.file : `${place.file}: tensor '${tensor}'`
  return new CheckpointError(`${where}: ${problem}`, {
    file: place.file,
    tensor,
    ...(place.cause === undefined ? {} : { cause: place.cause }),
  })
}

/** A value from a file, short enough for a message. */
export function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}
