/** What every part of the demo is given. */
import type { DeviceName } from '@nexus/native'
import { Interrupted } from './exit.js'
import type { Output } from './output.js'

export interface Context {
  readonly device: DeviceName
  readonly seed: number
  readonly output: Output
  readonly signal: AbortSignal
}

/** @throws Interrupted once the run has been asked to stop. */
export function throwIfStopped(signal: AbortSignal): void {
  if (signal.aborted) throw new Interrupted('interrupted')
}
