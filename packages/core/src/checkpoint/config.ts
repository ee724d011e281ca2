/**
 * `config.json`, read by key. transformers writes a key otherwise than the model's authors did (`num_local_experts` for
 * `num_experts`), so each value is asked for by all of its spellings; a value that is absent or null takes the default that
 * transformers has for the family. A composed model (vision and text) keeps its language model's keys in `text_config`.
 */
import { failure, shown } from './failure.js'
import { isObject } from './strict-json.js'

type Keys = readonly [string, ...string[]]

export class ModelConfig {
  readonly file: string
  readonly modelType: string
  readonly #values: Readonly<Record<string, unknown>>

  private constructor(file: string, modelType: string, values: Readonly<Record<string, unknown>>) {
    this.file = file
    this.modelType = modelType
    this.#values = values
  }

  /** Descends into the language model's part, where the configuration has one. */
  static from(root: Readonly<Record<string, unknown>>, file: string): ModelConfig {
    const nested = root.text_config ?? root.language_config
    const values = isObject(nested) ? nested : root
    const modelType = values.model_type ?? root.model_type
    if (typeof modelType !== 'string') throw failure({ file }, `model_type is ${shown(modelType)}, not a string`)
    return new ModelConfig(file, modelType, values)
  }

  /** An integer in [`min`, `max`]. Spellings that contradict each other are refused. */
  integer(keys: Keys, fallback: number | null, min = 1, max = Number.MAX_SAFE_INTEGER): number {
    const value = this.#value(keys) ?? fallback
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
      throw this.#wrong(
        keys,
        value,
        max === Number.MAX_SAFE_INTEGER ? `an integer >= ${min}` : `an integer from ${min} to ${max}`,
      )
    }
    return value
  }

  number(keys: Keys, fallback: number): number {
    const value = this.#value(keys) ?? fallback
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.#wrong(keys, value, 'a finite number')
    return value
  }

  boolean(keys: Keys, fallback: boolean): boolean {
    const value = this.#value(keys) ?? fallback
    if (typeof value !== 'boolean') throw this.#wrong(keys, value, 'true or false')
    return value
  }

  string(keys: Keys, fallback: string): string {
    const value = this.#value(keys) ?? fallback
    if (typeof value !== 'string') throw this.#wrong(keys, value, 'a string')
    return value
  }

  /** A list of non-negative integers; null where the key is absent. */
  integers(keys: Keys): readonly number[] | null {
    const value = this.#value(keys) ?? null
    if (value === null) return null
    if (!Array.isArray(value) || !value.every((v) => Number.isSafeInteger(v) && v >= 0)) {
      throw this.#wrong(keys, value, 'a list of layer numbers')
    }
    return value
  }

  /** The value of the first spelling that is there and not null. */
  #value(keys: Keys): unknown {
    const given = keys.filter((key) => Object.hasOwn(this.#values, key) && this.#values[key] !== null)
    const [first, ...others] = given
    if (first === undefined) return undefined
    const value = this.#values[first]
    for (const other of others) {
      if (JSON.stringify(this.#values[other]) !== JSON.stringify(value)) {
        throw failure({ file: this.file }, `${first} is ${shown(value)} but ${other} is ${shown(this.#values[other])}`)
      }
    }
    return value
  }

  #wrong(keys: Keys, value: unknown, expected: string): Error {
    return failure({ file: this.file }, `${keys.join(' / ')} is ${shown(value)}, expected ${expected}`)
  }
}
