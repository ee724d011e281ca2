/**
 * From samples to the energy of a window: pure functions, so that every rule can be tested without a device.
 *
 * A GPU's counter moves about ten times a second, so a window's energy is off by up to a step at each end: the counter is used once
 * it was seen to move at least ten times. Shorter windows are integrated from power samples, when at least three lie inside; shorter
 * ones still cannot be measured, and are `null` rather than 0.
 */
import type { Measured, Measurement, PowerSample, ThrottleReason } from './model.js'

/** Moves of the counter that make its steps small enough. */
export const MIN_TICKS = 10
/** Power samples inside a window that make an integral. */
export const MIN_POWER_SAMPLES = 3
/** A driver's average looks back 1 s: a window must be long against that. */
export const MIN_AVERAGE_WINDOW_MS = 3000
/** RAPL's counters move every millisecond. */
export const MIN_RAPL_WINDOW_MS = 20
/** Of the span between two readings of RAPL, the share that may lie outside of the window. */
export const MAX_RAPL_SLACK = 0.1

/** A window and all that was seen of it. */
export interface Observation {
  readonly device: string
  readonly kind: 'cpu' | 'gpu'
  readonly intervalMs: number
  readonly startMs: number
  readonly endMs: number
  /** The sample before the window; a text is why there is none. */
  readonly before: PowerSample | string
  /** The one after it. */
  readonly after: PowerSample | string
  /** All from `before` to `after`, as far as the ring still holds them. */
  readonly samples: readonly PowerSample[]
  /** For each figure that is unknown, why. */
  readonly unknown: Readonly<Record<string, string | undefined>>
  /** Of a device that does nothing, or why that is not known. */
  readonly idleWatts: number | string
}

const ms = (value: number): string => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`

interface Energy {
  readonly joules: number
  readonly source: NonNullable<Measurement['source']>
  readonly power: Measurement['power']
}

/** The counter's difference, scaled from the span between its readings to the window. A text is why there is none. */
function byCounter(seen: Observation, figure: 'joules' | 'memoryJoules'): number | string {
  const { before, after, kind } = seen
  if (typeof before === 'string') return before
  if (typeof after === 'string') return after
  const [first, last] = [before[figure], after[figure]]
  if (first === null || last === null) return seen.unknown[figure] ?? 'the energy counter was not readable'
  if (after.resets !== before.resets) return 'the energy counter went back in the window (it was reset)'
  const [windowMs, spanMs] = [seen.endMs - seen.startMs, after.timeMs - before.timeMs]
  if (kind === 'gpu') {
    const ticks = after.ticks - before.ticks
    if (ticks < MIN_TICKS) return `the energy counter moved ${ticks} times in ${ms(windowMs)}, fewer than ${MIN_TICKS}`
  } else {
    if (windowMs < MIN_RAPL_WINDOW_MS) return `the window of ${ms(windowMs)} is shorter than ${MIN_RAPL_WINDOW_MS} ms`
    if (spanMs - windowMs > MAX_RAPL_SLACK * spanMs) {
      return `the counter was read over ${ms(spanMs)}, too long for the window of ${ms(windowMs)}`
    }
  }
  return ((last - first) * windowMs) / spanMs
}

/** ∫ figure dt over the window, by trapezoids, in units · s. A text is why there is none. */
export function integrate(seen: Observation, figure: 'watts' | 'averageWatts' | 'memoryWatts'): number | string {
  const { startMs, endMs, samples } = seen
  const points: (readonly [number, number])[] = []
  for (const sample of samples) {
    const value = sample[figure]
    if (value !== null) points.push([sample.timeMs, value])
  }
  const inside = points.filter(([t]) => t > startMs && t < endMs).length
  if (inside === 0 && seen.unknown[figure] !== undefined) return seen.unknown[figure]
  if (inside < MIN_POWER_SAMPLES) {
    return `${inside} power samples lie in the window of ${ms(endMs - startMs)}, fewer than ${MIN_POWER_SAMPLES}`
  }
  const maxGapMs = Math.max(4 * seen.intervalMs, 250)
  let [sum, from] = [0, startMs]
  let previous: readonly [number, number] | null = null
  for (const point of points) {
    if (previous === null && point[0] > startMs) {
      return `the power samples begin ${ms(point[0] - startMs)} after the window (the ring is too short, or they failed)`
    }
    if (previous !== null && point[0] > startMs) {
      const [t0, p0] = previous
      const [t1, p1] = point
      if (t1 - t0 > maxGapMs) return `there are no power samples for ${ms(t1 - t0)} of the window`
      const until = Math.min(t1, endMs)
      const at = (t: number): number => p0 + ((p1 - p0) * (t - t0)) / (t1 - t0)
      sum += ((at(from) + at(until)) / 2) * (until - from)
      from = until
      if (until === endMs) return sum / 1000
    }
    previous = point
  }
  return `the power samples end ${ms(endMs - from)} before the window`
}

function energyOf(seen: Observation): Energy | string {
  const counted = byCounter(seen, 'joules')
  if (typeof counted === 'number') {
    return { joules: counted, source: seen.kind === 'gpu' ? 'nvml-energy-counter' : 'rapl', power: null }
  }
  if (seen.kind === 'cpu') return counted
  for (const bad of [seen.before, seen.after]) if (typeof bad === 'string') return bad
  const instant = integrate(seen, 'watts')
  if (typeof instant === 'number') return { joules: instant, source: 'nvml-power-integral', power: 'instant' }
  if (seen.endMs - seen.startMs >= MIN_AVERAGE_WINDOW_MS) {
    const average = integrate(seen, 'averageWatts')
    if (typeof average === 'number') return { joules: average, source: 'nvml-power-integral', power: 'average' }
  }
  return counted === instant ? counted : `${counted}; ${instant}`
}

function memoryOf(seen: Observation): number | string {
  if (seen.kind === 'cpu') return byCounter(seen, 'memoryJoules')
  const windowMs = seen.endMs - seen.startMs
  if (windowMs < MIN_AVERAGE_WINDOW_MS) {
    return `memory power is an average over 1 s: the window of ${ms(windowMs)} is shorter than ${MIN_AVERAGE_WINDOW_MS} ms`
  }
  return integrate(seen, 'memoryWatts')
}

const means = [
  'gpuUtilisation',
  'memoryUtilisation',
  'smActivity',
  'smOccupancy',
  'tensorActivity',
  'dramActivity',
] as const

function meanOf(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null)
  return known.length === 0 ? null : known.reduce((a, b) => a + b, 0) / known.length
}

function throttleOf(samples: readonly PowerSample[]): Measurement['throttle'] {
  const lists = samples.map((sample) => sample.throttle).filter((list) => list !== null)
  if (lists.length === 0) return null
  const share: Partial<Record<ThrottleReason, number>> = {}
  for (const reason of lists.flat()) share[reason] = (share[reason] ?? 0) + 1 / lists.length
  return share
}

/** The measurement of an observed window. */
export function measurementOf(seen: Observation): Measurement {
  const windowMs = seen.endMs - seen.startMs
  const reasons: Partial<Record<Measured, string>> = {}
  const known = (name: Measured, value: number | string): number | null => {
    if (typeof value === 'number') return value
    reasons[name] = value
    return null
  }
  const energy = energyOf(seen)
  const joules = known('joules', typeof energy === 'string' ? energy : energy.joules)
  const noEnergy = reasons.joules ?? ''
  const idle =
    joules === null
      ? noEnergy
      : typeof seen.idleWatts === 'string'
        ? seen.idleWatts
        : (seen.idleWatts * windowMs) / 1000
  const idleJoules = known('idleJoules', typeof idle === 'string' || joules === null ? idle : Math.min(idle, joules))

  const inside = seen.samples.filter(({ timeMs }) => timeMs > seen.startMs && timeMs <= seen.endMs)
  const noSample = typeof seen.after === 'string' ? seen.after : `no sample fell into the window of ${ms(windowMs)}`
  const mean = (name: (typeof means)[number] | 'throttle'): string => seen.unknown[name] ?? noSample
  const activity = Object.fromEntries(
    means.map((name) => [name, known(name, meanOf(inside.map((s) => s[name])) ?? mean(name))]),
  ) as Record<(typeof means)[number], number | null>
  const throttle = throttleOf(inside)
  if (throttle === null) reasons.throttle = mean('throttle')

  const counted = typeof seen.before !== 'string' && typeof seen.after !== 'string' && seen.after.joules !== null
  return {
    device: seen.device,
    joules,
    source: typeof energy === 'string' ? null : energy.source,
    reason: reasons.joules ?? null,
    windowMs,
    meanWatts: known('meanWatts', joules === null ? noEnergy : windowMs > 0 ? (joules * 1000) / windowMs : 0),
    idleJoules,
    activeJoules: known(
      'activeJoules',
      joules === null || idleJoules === null ? (reasons.idleJoules ?? noEnergy) : joules - idleJoules,
    ),
    memoryJoules: known('memoryJoules', memoryOf(seen)),
    ticks:
      counted && typeof seen.before !== 'string' && typeof seen.after !== 'string'
        ? seen.after.ticks - seen.before.ticks
        : null,
    power: typeof energy === 'string' ? null : energy.power,
    samples: inside.length,
    ...activity,
    throttle,
    reasons,
  }
}
