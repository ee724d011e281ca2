/** Checks of arguments, shared by all packages: each error names the argument, what came and what was expected. */

/** What came, in a few words: for error messages. */
export function describe(value: unknown): string {
  if (value === null) return 'null'
  if (typeof value === 'string') return value.length > 40 ? `'${value.slice(0, 40)}…'` : `'${value}'`
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return value.name === '' ? 'a function' : `the function ${value.name}`
  if (Array.isArray(value))
    return value.length > 8 ? `an array of ${value.length}` : `[${value.map(describe).join(', ')}]`
  if (typeof value === 'object') {
    const name: unknown = Object.getPrototypeOf(value)?.constructor?.name
    return typeof name === 'string' && name !== 'Object' ? `an instance of ${name}` : 'an object'
  }
  return String(value)
}

/** Levenshtein distance, for suggestions. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const replace = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(replace, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}

function nearest(word: string, known: readonly string[]): string | null {
  let best: string | null = null
  let least = Math.max(2, Math.floor(word.length / 2)) + 1
  for (const candidate of known) {
    const d = distance(word.toLowerCase(), candidate.toLowerCase())
    if (d < least) {
      least = d
      best = candidate
    }
  }
  return best
}

/**
 * Checks that `options` is an object (or undefined) with no key but the known ones.
 * @throws TypeError naming the unknown key, and the known one that is most like it
 */
export function checkOptions(name: string, options: unknown, knownKeys: readonly string[]): void {
  if (options === undefined) return
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`${name}: expected an object of options, got ${describe(options)}`)
  }
  for (const key of Object.keys(options)) {
    if (knownKeys.includes(key)) continue
    const like = nearest(key, knownKeys)
    const hint = like === null ? `known are: ${knownKeys.join(', ')}` : `did you mean '${like}'?`
    throw new TypeError(`${name}: unknown option '${key}'; ${hint}`)
  }
}

/**
 * As {@link checkOptions}, where the options cannot be left out.
 * @throws TypeError when they are, and as `checkOptions`
 */
export function requireOptions(name: string, options: unknown, knownKeys: readonly string[]): void {
  if (options === undefined) throw new TypeError(`${name}: expected an object of options, got undefined`)
  checkOptions(name, options, knownKeys)
}

/**
 * @throws TypeError when `value` is not a number, RangeError when it is not an integer in [min, max]
 */
export function checkInteger(name: string, value: unknown, min = 0, max = Number.MAX_SAFE_INTEGER): number {
  const expected =
    max === Number.MAX_SAFE_INTEGER ? `an integer of at least ${min}` : `an integer from ${min} to ${max}`
  if (typeof value !== 'number') throw new TypeError(`${name}: expected ${expected}, got ${describe(value)}`)
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new RangeError(`${name}: expected ${expected}, got ${value}`)
  }
  return value
}

/**
 * @throws TypeError when `value` is not a number, RangeError when it is not finite or not in [min, max]
 */
export function checkNumber(name: string, value: unknown, min = -Infinity, max = Infinity): number {
  const range =
    min === -Infinity && max === Infinity
      ? 'a finite number'
      : max === Infinity
        ? `a finite number of at least ${min}`
        : `a finite number from ${min} to ${max}`
  if (typeof value !== 'number') throw new TypeError(`${name}: expected ${range}, got ${describe(value)}`)
  if (!Number.isFinite(value) || value < min || value > max) {
    throw new RangeError(`${name}: expected ${range}, got ${value}`)
  }
  return value
}

/**
 * @throws TypeError when `value` is not of `list`'s type, RangeError when it is not in the list
 */
export function checkOneOf<const T extends string | number>(name: string, value: unknown, list: readonly T[]): T {
  const found = list.find((item) => item === value)
  if (found !== undefined) return found
  const expected = `one of ${list.map(describe).join(', ')}`
  const message = `${name}: expected ${expected}, got ${describe(value)}`
  throw typeof value === typeof list[0] ? new RangeError(message) : new TypeError(message)
}
