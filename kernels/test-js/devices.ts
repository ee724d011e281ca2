/**
 * The devices that device tests run on: the CPU always, CUDA where there is a GPU. Use with `describe.each(testDevices())` and
 * `describe.skipIf(device.skip !== null)`; the title carries the reason. With NEXUS_REQUIRE_GPU=1 a missing GPU fails.
 */
import { type DeviceName, systemInfo } from '../lib/index.js'

export interface TestDevice {
  readonly name: DeviceName
  /** Why its tests cannot run here; `null` when they can. */
  readonly skip: string | null
  /** For titles: the name, and the reason of a skip. */
  readonly title: string
}

export function testDevices(): TestDevice[] {
  const { addon, machine } = systemInfo()
  const reason = machine === null ? ('error' in addon ? addon.error : 'no addon') : machine.cuda.status
  const usable = machine?.cuda.usable === true
  if (!usable && process.env.NEXUS_REQUIRE_GPU === '1')
    throw new Error(`NEXUS_REQUIRE_GPU=1, but there is no GPU: ${reason}`)
  const cuda = usable ? null : reason
  return [
    { name: 'cpu', skip: null, title: 'cpu' },
    { name: 'cuda:0', skip: cuda, title: cuda === null ? 'cuda:0' : `cuda:0 (skipped: ${cuda.split('\n')[0]})` },
  ]
}

export const devices = testDevices()
