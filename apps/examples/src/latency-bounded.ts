/**
 * Latency bounded: keeps one tenant's p99 under a bound by the size of its slice, and leaves the rest of the chip to
 * others. It grows by a portion as soon as a window is too slow. It shrinks late: after calm windows, and later each
 * time that this was a mistake.
 */
import type { DeviceName } from '@nexus/native'
import { describeDevice, SliceAllocationError, SliceEnforcer, SliceManager } from '@nexus/slices'
import { schedule, type Tenant } from '@nexus/streams'

export type Aims = { boundMs: number; windowSteps: number }

/** `tenants`: one named 'bounded', and others; experts among those (`numExperts`) have the slices that are left. */
export function latencyBounded(device: DeviceName, numExperts: number, tenants: Tenant[], aims: Aims) {
  const { boundMs, windowSteps } = aims
  const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
  const manager = new SliceManager({ device: describeDevice(device), numExperts, enforcer })
  const { granularity, minSms } = manager.device
  manager.allocate({ name: 'bounded', sms: minSms })
  const start = () => schedule(manager.plan, { partition: enforcer.partition(manager.plan), tenants })
  const size = () => manager.slice('bounded').grantedSms
  let steps = start()
  let [times, p99Ms]: [number[], number | null] = [[], null]
  let [calm, patience, shrunk] = [0, 3, false]
  const resize = (sms: number) => {
    try {
      manager.resize('bounded', sms)
    } catch (error) {
      if (error instanceof SliceAllocationError) return // as large as can be: the plan that was there holds
      throw error
    }
    const before = steps
    steps = start()
    before.dispose() // never waits: what is under way ends where it is
  }
  const adjust = (p99: number) => {
    calm = p99 < 0.7 * boundMs ? calm + 1 : 0
    if (p99 > boundMs) {
      if (shrunk) patience = Math.min(256, 2 * patience)
      resize(size() + granularity)
    } else if (calm >= patience && size() > minSms) resize(size() - granularity)
    else return
    shrunk = p99 <= boundMs
    calm = 0
  }
  const step = async (...args: unknown[]): Promise<unknown> => {
    const begin = performance.now()
    using queued = steps.tenant('bounded').enqueue(...args)
    const value = await queued.done()
    if (times.push(performance.now() - begin) < windowSteps) return value
    p99Ms = times.sort((a, b) => a - b)[Math.ceil(0.99 * times.length) - 1] ?? 0
    times = []
    adjust(p99Ms)
    return value
  }
  const dispose = () => [steps, manager, enforcer].forEach((part) => void part.dispose())
  return { step, tenant: (name: string) => steps.tenant(name), state: () => ({ sms: size(), p99Ms }), manager, dispose }
}
