/** What makes one graph another: everything that is fixed when it is recorded. */
import { checkInteger, describe } from '@nexus/native'

/** A part of a key: the same value, the same graph. */
export type KeyPart = string | number | boolean | null | readonly (string | number | boolean | null)[]

/** What a graph is recorded for. Parts of one's own may be added; each is part of the key under its name. */
export interface GraphKeyParts {
  /** Tokens that it is laid out for: see `tokenBucket`. */
  readonly bucket: number
  /** The key of the slices' layout (`plan.key`); `null` without slices. A recorded node stays in its slice. */
  readonly layout: string | null
  readonly strategy: string
  /** Stream of each expert or lane, in any form; `null` without streams. Lanes of a device table are no part of it: they may change. */
  readonly assignment: KeyPart
  readonly dtype: string
  /** Experts per token. */
  readonly topK: number
  readonly [extra: string]: KeyPart
}

const required = ['bucket', 'layout', 'strategy', 'assignment', 'dtype', 'topK'] as const

function part(name: string, value: unknown): string {
  const simple = (v: unknown) =>
    v === null || typeof v === 'string' || typeof v === 'boolean' || (typeof v === 'number' && Number.isFinite(v))
  if (simple(value) || (Array.isArray(value) && value.every(simple))) return JSON.stringify(value)
  throw new TypeError(
    `${name}: expected a string, a finite number, a boolean, null, or an array of them, got ${describe(value)}`,
  )
}

/**
 * The key of a graph: equal for equal parts, in whatever order they are given, and for no others. Make it when a plan or a bucket is new and keep
 * it; a step should not build strings.
 * @throws TypeError, RangeError naming the part
 */
export function graphKey(parts: GraphKeyParts): string {
  if (typeof parts !== 'object' || parts === null || Array.isArray(parts)) {
    throw new TypeError(`parts: expected an object, got ${describe(parts)}`)
  }
  checkInteger('parts.bucket', parts.bucket, 0, 2 ** 31)
  checkInteger('parts.topK', parts.topK, 1, 2 ** 31)
  for (const name of ['strategy', 'dtype'] as const) {
    if (typeof parts[name] !== 'string' || parts[name] === '') {
      throw new TypeError(`parts.${name}: expected a name, got ${describe(parts[name])}`)
    }
  }
  if (parts.layout !== null && typeof parts.layout !== 'string') {
    throw new TypeError(`parts.layout: expected the key of a layout or null, got ${describe(parts.layout)}`)
  }
  const known: readonly string[] = required
  const extra = Object.keys(parts).filter((name) => !known.includes(name))
  // Names as JSON strings as well: no name or value can look like the border between two parts.
  return [...required, ...extra.sort()]
    .map((name) => `${JSON.stringify(name)}:${part(`parts.${name}`, parts[name])}`)
    .join(',')
}
