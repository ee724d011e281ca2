/** The one file of this package that touches the native binding: monitors' handles, and samples made plain data. */
import { binding, call, type EnergyColumn, type EnergyMonitorHandle, energyColumns } from '@nexus/native/binding'
import type { EnergyStatus, Figure, PowerSample, ThrottleReason } from './model.js'

export { binding, call, type EnergyMonitorHandle, type RawEnergyInventory } from '@nexus/native/binding'

const position = Object.fromEntries(energyColumns.map((name, i) => [name, i])) as Record<EnergyColumn, number>

// NVML's nvmlClocksEventReason… bits, lowest first.
const throttleNames: readonly ThrottleReason[] = [
  'gpu-idle',
  'applications-clocks-setting',
  'sw-power-cap',
  'hw-slowdown',
  'sync-boost',
  'sw-thermal-slowdown',
  'hw-thermal-slowdown',
  'hw-power-brake-slowdown',
  'display-clock-setting',
]

/** What a monitor's ring holds, and how it fares. */
export interface View extends EnergyStatus {
  readonly samples: PowerSample[]
}

/** `performance.now()` less the sampler's clock: both count from a fixed moment, at the same pace. */
let offset: number | null = null
function clockOffset(): number {
  offset ??= performance.now() - binding().energy.nowMs()
  return offset
}

const known = (value: number): number | null => (Number.isNaN(value) ? null : value)

function sampleAt(raw: Float64Array, start: number): PowerSample {
  const at = (name: EnergyColumn): number => raw[start + position[name]] ?? Number.NaN
  const bits = at('throttleBits')
  return {
    timeMs: at('timeMs') + clockOffset(),
    joules: known(at('joules')),
    memoryJoules: known(at('memoryJoules')),
    resets: at('resets'),
    ticks: at('ticks'),
    watts: known(at('watts')),
    averageWatts: known(at('averageWatts')),
    memoryWatts: known(at('memoryWatts')),
    gpuUtilisation: known(at('gpuUtilisation')),
    memoryUtilisation: known(at('memoryUtilisation')),
    smActivity: known(at('smActivity')),
    smOccupancy: known(at('smOccupancy')),
    tensorActivity: known(at('tensorActivity')),
    dramActivity: known(at('dramActivity')),
    throttle: Number.isNaN(bits) ? null : throttleNames.filter((_, i) => Math.floor(bits / 2 ** i) % 2 === 1),
  }
}

const figureOf = (column: EnergyColumn): Figure | null =>
  column === 'timeMs' || column === 'resets' || column === 'ticks'
    ? null
    : column === 'throttleBits'
      ? 'throttle'
      : column

export function startMonitor(device: string, intervalMs: number, historySamples: number): EnergyMonitorHandle {
  return call((b) => b.energy.monitorStart(device, intervalMs, historySamples))
}

/** Asks for a sample; returns the time (of `performance.now()`) at or after which it will be. */
export function requestSample(monitor: EnergyMonitorHandle): number {
  return call((b) => b.energy.monitorRequest(monitor)) + clockOffset()
}

/** The samples at or after `sinceMs`. */
export function readMonitor(monitor: EnergyMonitorHandle, sinceMs: number): View {
  // Times are converted back and forth: a microsecond makes up for the rounding.
  const raw = call((b) => b.energy.monitorRead(monitor, sinceMs - clockOffset() - 1e-3))
  const samples: PowerSample[] = []
  const width = energyColumns.length
  for (let i = 0; i + width <= raw.samples.length; i += width) samples.push(sampleAt(raw.samples, i))
  const unknown: Partial<Record<Figure, string>> = {}
  for (const [i, column] of energyColumns.entries()) {
    const [figure, reason] = [figureOf(column), raw.reasons[i] ?? '']
    if (figure !== null && reason !== '') unknown[figure] = reason
  }
  const blocked = raw.blockedCall === '' ? null : { call: raw.blockedCall, ms: raw.blockedMs }
  return { samples, unknown, blocked, droppedSamples: raw.dropped }
}

export function stopMonitor(monitor: EnergyMonitorHandle): void {
  call((b) => b.native.release(monitor))
}
