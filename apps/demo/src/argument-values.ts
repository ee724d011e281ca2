/** Values of flags that several commands have. */
import { UsageError } from './exit.js'

export type DeviceArgument = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`

/** @throws UsageError naming the flag */
export function parseInteger(flag: string, text: string, min: number, max: number): number {
  const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= min && value <= max))
    throw new UsageError(`${flag}: expected an integer from ${min} to ${max}, got '${text}'`)
  return value
}

/** @throws UsageError */
export function parseDevice(text: string): DeviceArgument {
  if (text === 'auto' || text === 'cpu' || text === 'cuda') return text
  const index = /^cuda:(\d{1,3})$/.exec(text)?.[1]
  if (index !== undefined) return `cuda:${Number(index)}`
  throw new UsageError(`--device: expected auto, cpu, cuda or cuda:N, got '${text}'`)
}
