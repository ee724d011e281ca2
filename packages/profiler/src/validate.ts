/** Argument checks by name. Kept here, small, so that the package has no dependency. */
import type { ExpertProfilerOptions } from './model.js'

export function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (value === null || typeof value !== 'object') return String(value)
  return Array.isArray(value)
    ? `an array of ${value.length}`
    : `an object (${value.constructor?.name ?? 'no prototype'})`
}

export function checkObject(
  name: string,
  value: unknown,
  keys: readonly string[],
): asserts value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${name}: expected an object, got ${describe(value)}`)
  }
  for (const key of Object.keys(value)) {
    if (!keys.includes(key)) throw new TypeError(`${name}: unknown key '${key}'; expected one of ${keys.join(', ')}`)
  }
}

export function checkInteger(name: string, value: unknown, min: number, max: number): number {
  if (typeof value !== 'number') throw new TypeError(`${name}: expected an integer, got ${describe(value)}`)
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new RangeError(`${name}: expected an integer from ${min} to ${max}, got ${value}`)
  }
  return value
}

/** A finite number in an interval; each end is open where it says so. */
export function checkNumber(
  name: string,
  value: unknown,
  range: { readonly min: number; readonly max?: number; readonly openMin?: boolean; readonly openMax?: boolean },
): number {
  if (typeof value !== 'number') throw new TypeError(`${name}: expected a number, got ${describe(value)}`)
  const max = range.max ?? Number.MAX_VALUE
  const low = range.openMin ? value > range.min : value >= range.min
  const high = range.openMax ? value < max : value <= max
  if (!Number.isFinite(value) || !low || !high) {
    const interval = `${range.openMin ? '(' : '['}${range.min}, ${range.max ?? 'finite'}${range.openMax ? ')' : ']'}`
    throw new RangeError(`${name}: expected a number in ${interval}, got ${value}`)
  }
  return value
}

/** @internal The options of an ExpertProfiler by name, also for those who pass them on. */
export const profilerOptionKeys = [
  'numExperts',
  'windowSteps',
  'halfLifeSteps',
  'hotShare',
  'coldShare',
  'contrast',
  'hysteresis',
  'minAssignments',
  'horizonSteps',
  'historySteps',
] as const satisfies readonly (keyof ExpertProfilerOptions)[]

/** Checks options and fills in their defaults. */
export function resolveOptions(options: ExpertProfilerOptions): Required<ExpertProfilerOptions> {
  checkObject('options', options, profilerOptionKeys)
  const numExperts = checkInteger('options.numExperts', options.numExperts, 1, 65536)
  const hotShare = checkNumber('options.hotShare', options.hotShare ?? 0.5, {
    min: 0,
    max: 1,
    openMin: true,
    openMax: true,
  })
  const coldShare = options.coldShare ?? Math.min(0.1, 1 - hotShare)
  const horizonSteps = checkInteger('options.horizonSteps', options.horizonSteps ?? 8, 1, 4096)
  return {
    numExperts,
    windowSteps: checkInteger('options.windowSteps', options.windowSteps ?? 64, 2, 65536),
    halfLifeSteps: checkNumber('options.halfLifeSteps', options.halfLifeSteps ?? 16, { min: 0, openMin: true }),
    hotShare,
    coldShare: checkNumber('options.coldShare', coldShare, { min: 0, max: 1 - hotShare, openMin: true }),
    contrast: checkNumber('options.contrast', options.contrast ?? 1.25, { min: 1 }),
    hysteresis: checkNumber('options.hysteresis', options.hysteresis ?? 0.05, { min: 0, max: 0.5, openMax: true }),
    minAssignments: checkInteger(
      'options.minAssignments',
      options.minAssignments ?? 32 * numExperts,
      1,
      Number.MAX_SAFE_INTEGER,
    ),
    horizonSteps,
    historySteps: checkInteger(
      'options.historySteps',
      options.historySteps ?? 128 * horizonSteps,
      4 * horizonSteps,
      65536 * horizonSteps,
    ),
  }
}

/** Copies `length` numbers of at least 0. The name of an element is only put together when it is wrong. */
export function checkNumbers(
  name: string,
  values: unknown,
  length: number,
  range: { readonly max: number; readonly integer: boolean },
): Float64Array {
  if (!Array.isArray(values) && !(ArrayBuffer.isView(values) && !(values instanceof DataView))) {
    throw new TypeError(`${name}: expected an array of ${length} numbers, got ${describe(values)}`)
  }
  const list = values as ArrayLike<unknown>
  if (list.length !== length) throw new RangeError(`${name}: expected ${length} numbers, got ${list.length}`)
  const result = new Float64Array(length)
  for (let i = 0; i < length; i++) {
    const x = list[i]
    if (typeof x === 'number' && x >= 0 && x <= range.max && (!range.integer || Number.isInteger(x))) result[i] = x
    else if (range.integer) checkInteger(`${name}[${i}]`, x, 0, range.max)
    else checkNumber(`${name}[${i}]`, x, { min: 0, max: range.max })
  }
  return result
}
