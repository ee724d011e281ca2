/** The addon, where there is one, and faults in it. */
import { systemInfo } from '@nexus/native'
import { binding, type NativeBinding } from '@nexus/native/binding'
import { onTestFinished } from 'vitest'

const { addon, machine } = systemInfo()

/** Why tests that need the addon are skipped; `null` where it is there. */
export const noAddon: string | null = 'error' in addon ? (addon.error.split('\n')[0] ?? 'no addon') : null

/** Devices of this machine. */
export const devices = noAddon ? [] : (['cpu', ...(machine?.cuda.usable ? (['cuda:0'] as const) : [])] as const)

type Slices = NativeBinding['slices']

/** Replaces a function of the addon until the test ends. */
export function replace<K extends keyof Slices>(name: K, by: (real: Slices[K]) => Slices[K]): void {
  const { slices } = binding()
  const real = slices[name]
  slices[name] = by(real)
  onTestFinished(() => {
    slices[name] = real
  })
}

/** An error as the addon throws it. */
export const raw = (code: string, message: string, more: object = {}): Error =>
  Object.assign(new Error(message), { code: `ERR_NEXUS_${code}`, ...more })
