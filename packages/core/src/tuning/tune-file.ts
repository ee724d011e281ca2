/**
 * The file of measured choices: what `tune` found on one device for some linear layers, as plain JSON. It is checked as a whole before
 * anything of it is used; a layer that it does not have runs by the heuristic.
 */
import { NexusError } from '@nexus/native'
import type { FloatDType } from '@nexus/router-kernels'
import { isObject, parseStrictJson } from '../checkpoint/strict-json.js'

export const tuneSchema = 'nexus-tune/1'

/** A tune file cannot be read, written, or is not one. */
export class TuneFileError extends NexusError {
  override name = 'TuneFileError'
  readonly file: string

  constructor(file: string, what: string, options?: ErrorOptions) {
    super('ERR_NEXUS_TUNE_FILE', `${file}: ${what}`, options)
    this.file = file
  }
}

/** Medians in microseconds by variant. */
export type VariantTimes = Readonly<Record<string, number>>

/** What was found for one number of rows: tokens of a token bucket, times the experts of a token. */
export interface TunedRows {
  readonly rows: number
  /** What runs, then the other candidates from fast to slow alone. A name that a device lacks is passed over. */
  readonly variants: readonly string[]
  /** What would run without the file. */
  readonly heuristic: string
  /** Alone, by an even load over the experts, and by a skewed one; empty where no times were kept. */
  readonly evenUs: VariantTimes
  readonly skewedUs: VariantTimes
}

/** One grouped linear layer: [numExperts, n, k] weights. */
export interface TunedLinear {
  readonly dtype: FloatDType
  readonly numExperts: number
  readonly k: number
  readonly n: number
  readonly gated: boolean
  /** The order of sums in which it is fastest over all rows measured, for `deterministic: 'batch-invariant'`; `null`: the default one. */
  readonly order: string | null
  readonly rows: readonly TunedRows[]
}

/** What `saveTuning` writes and layers read. */
export interface TuneFile {
  readonly schema: typeof tuneSchema
  /** Such as `sm_90/132` or `cpu/avx2`. */
  readonly deviceClass: string
  /** Name of the device. */
  readonly device: string
  /** Version of CUDA that the driver is for; `null` on the CPU. */
  readonly driver: string | null
  /** Version of the kernels. */
  readonly nexus: string
  /** Where the times come from; free text. */
  readonly source: string
  readonly linears: readonly TunedLinear[]
}

/** One layer's identity within a file. */
export const linearKey = (l: Pick<TunedLinear, 'dtype' | 'numExperts' | 'k' | 'n' | 'gated'>): string =>
  [l.dtype, l.numExperts, l.n, l.k, l.gated ? 'gated' : 'plain'].join(' ')

const maxDim = 2 ** 31 - 1

/** @throws TuneFileError naming `file` and the field */
export function parseTuneFile(text: string, file: string): TuneFile {
  let value: unknown
  try {
    value = parseStrictJson(text)
  } catch (cause) {
    const why = cause instanceof Error ? cause.message.slice(0, 200) : String(cause)
    throw new TuneFileError(file, `is not valid JSON (${why}); delete it and tune again`, { cause })
  }
  return checkTuneFile(value, file)
}

/** @throws TuneFileError naming `file` and the field */
export function checkTuneFile(value: unknown, file: string): TuneFile {
  const root = new Fields(file, '', value)
  const schema = root.string('schema')
  if (schema !== tuneSchema) throw root.wrong('schema', schema, `'${tuneSchema}'`)
  const seen = new Set<string>()
  return {
    schema,
    deviceClass: root.string('deviceClass'),
    device: root.string('device'),
    driver: root.value('driver') === null ? null : root.string('driver'),
    nexus: root.string('nexus'),
    source: root.string('source'),
    linears: root.list('linears').map((fields) => {
      const linear = tunedLinear(fields)
      if (seen.has(linearKey(linear))) throw fields.wrong('', linearKey(linear), 'each layer once')
      seen.add(linearKey(linear))
      return linear
    }),
  }
}

function tunedLinear(fields: Fields): TunedLinear {
  const dtype = fields.string('dtype')
  if (dtype !== 'f32' && dtype !== 'bf16' && dtype !== 'f16') throw fields.wrong('dtype', dtype, 'f32, bf16 or f16')
  const gated = fields.value('gated')
  if (typeof gated !== 'boolean') throw fields.wrong('gated', gated, 'true or false')
  const rows = fields.list('rows').map((entry) => {
    const variants = entry.value('variants')
    const named = Array.isArray(variants) && variants.length > 0 && variants.every((v) => typeof v === 'string' && v)
    if (!named) throw entry.wrong('variants', variants, 'a list of names, at least one')
    return {
      rows: entry.integer('rows', maxDim),
      variants: variants as string[],
      heuristic: entry.string('heuristic'),
      evenUs: entry.times('evenUs'),
      skewedUs: entry.times('skewedUs'),
    }
  })
  const twice = rows.find((entry, i) => rows.findIndex((other) => other.rows === entry.rows) !== i)
  if (twice !== undefined) throw fields.wrong('rows', twice.rows, 'each number of rows once')
  return {
    dtype,
    numExperts: fields.integer('numExperts', 1024),
    k: fields.integer('k', maxDim),
    n: fields.integer('n', maxDim),
    gated,
    order: fields.value('order') === null ? null : fields.string('order'),
    rows,
  }
}

/** An object of the file, and where in it that is. */
class Fields {
  readonly #file: string
  readonly #at: string
  readonly #object: Readonly<Record<string, unknown>>

  constructor(file: string, at: string, value: unknown) {
    this.#file = file
    this.#at = at
    if (!isObject(value)) throw this.wrong('', value, 'an object')
    this.#object = value
  }

  value(name: string): unknown {
    return this.#object[name]
  }

  string(name: string): string {
    const value = this.value(name)
    if (typeof value !== 'string' || value === '') throw this.wrong(name, value, 'a string that is not empty')
    return value
  }

  integer(name: string, max: number): number {
    const value = this.value(name)
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > max) {
      throw this.wrong(name, value, `an integer from 1 to ${max}`)
    }
    return value
  }

  list(name: string): Fields[] {
    const value = this.value(name)
    if (!Array.isArray(value)) throw this.wrong(name, value, 'a list')
    return value.map((item, i) => new Fields(this.#file, `${this.#path(name)}[${i}]`, item))
  }

  times(name: string): VariantTimes {
    const value = this.value(name)
    const all =
      isObject(value) && Object.values(value).every((v) => typeof v === 'number' && Number.isFinite(v) && v > 0)
    if (!all) throw this.wrong(name, value, 'microseconds above 0 by variant')
    return value as VariantTimes
  }

  wrong(name: string, value: unknown, expected: string): TuneFileError {
    const shown = JSON.stringify(value)?.slice(0, 60) ?? 'nothing'
    const where = this.#path(name) || 'the file'
    return new TuneFileError(this.#file, `${where}: expected ${expected}, got ${shown}; delete the file and tune again`)
  }

  #path(name: string): string {
    if (name === '') return this.#at
    return this.#at === '' ? name : `${this.#at}.${name}`
  }
}

/** `newer` over `older`: its layers' rows take the place of those of as many rows. Both are of one device and version. */
export function mergeTuneFiles(older: TuneFile, newer: TuneFile): TuneFile {
  const byKey = new Map(older.linears.map((linear) => [linearKey(linear), linear]))
  for (const linear of newer.linears) {
    const before = byKey.get(linearKey(linear))?.rows ?? []
    const kept = before.filter(({ rows }) => !linear.rows.some((entry) => entry.rows === rows))
    const rows = [...kept, ...linear.rows].sort((a, b) => a.rows - b.rows)
    byKey.set(linearKey(linear), { ...linear, rows })
  }
  return { ...newer, linears: [...byKey.values()] }
}
