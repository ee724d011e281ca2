/** Runs the same specification on every device that this machine has. A missing GPU is a skip that says why, or a failure where one is required. */
import { type DeviceName, memoryStats, resolveDevice, Stream } from '@nexus/native'
import { describe, expect, test } from 'vitest'

function reasonWithoutCuda(): string | null {
  try {
    resolveDevice('cuda')
    return null
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** `null`: cuda:0 can be used. */
export const cudaMissing = reasonWithoutCuda()
export const devices: readonly DeviceName[] = cudaMissing === null ? ['cpu', 'cuda:0'] : ['cpu']

export function onEachDevice(what: string, specification: (device: DeviceName) => void): void {
  for (const device of devices) describe(`${what} on ${device}`, () => specification(device))
  if (cudaMissing === null) return
  if (process.env.NEXUS_REQUIRE_GPU === '1') {
    test(`${what} on cuda:0`, () => {
      throw new Error(`NEXUS_REQUIRE_GPU=1, but CUDA cannot be used: ${cudaMissing}`)
    })
  } else {
    test.skip(`${what} on cuda:0: ${cudaMissing}`, () => {})
  }
}

/** Memory held by live tensors and layers, once the releases that are queued have happened: they are stream-ordered. */
export async function liveMemory(device: DeviceName): Promise<{ liveBytes: number; liveBuffers: number }> {
  await Stream.default(device).synchronize()
  const { liveBytes, liveBuffers } = memoryStats(device)
  return { liveBytes, liveBuffers }
}

/**
 * Waits until nothing is live. What waits for the device is let go of on threads of the library's own, at some time: between tests, so that none
 * begins with memory of the one before, which would be gone at its end.
 */
export function allFreed(device: DeviceName): Promise<void> {
  const nothing = { liveBytes: 0, liveBuffers: 0 }
  return expect.poll(() => liveMemory(device), { timeout: 20_000, interval: 2 }).toEqual(nothing)
}
