/** What the machine of a test has, and what is left on it. */
import { type DeviceName, memoryStats, resolveDevice, Stream, systemInfo } from '@nexus/native'

const { addon } = systemInfo()

/** Why tests that compute are skipped; `null` where they are not. */
export const missingAddon = 'error' in addon ? (addon.error.split('\n')[0] ?? 'no addon') : null

/** Whether tests on a GPU are skipped: where there is none, and none is required. */
export const skipGpu =
  process.env.NEXUS_REQUIRE_GPU !== '1' && (missingAddon !== null || resolveDevice('auto') === 'cpu')

export async function liveBuffers(device: DeviceName): Promise<number> {
  await Stream.default(device).synchronize()
  return memoryStats(device).liveBuffers
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
