/** Experts, routed tokens and plans for tests, on every device that this machine has. */
import { type DeviceName, memoryStats, resolveDevice, Stream, systemInfo, Tensor } from '@nexus/native'
import { GroupedExperts, type RoutedTokens, Router } from '@nexus/router-kernels'
import { type AllocationPolicy, describeDevice, type Plan, SliceEnforcer, SliceManager } from '@nexus/slices'
import { describe, test } from 'vitest'

const { addon } = systemInfo()
const missing = 'error' in addon ? (addon.error.split('\n')[0] ?? 'no addon') : null

export const devices: readonly DeviceName[] = (() => {
  if (missing !== null) return []
  const best = resolveDevice('auto')
  return best === 'cpu' ? ['cpu'] : ['cpu', best]
})()

export function onEachDevice(what: string, specification: (device: DeviceName) => void): void {
  for (const device of devices) describe(`${what} on ${device}`, () => specification(device))
  if (missing !== null) test.skip(`${what}: ${missing}`, () => {})
}

export interface Problem {
  readonly experts: GroupedExperts
  readonly x: Tensor
  readonly routed: RoutedTokens
  dispose(): void
}

export interface ProblemOptions {
  readonly numExperts?: number
  readonly tokens?: number
  readonly topK?: number
  readonly width?: number
  readonly dtype?: 'f32' | 'bf16'
  readonly seed?: number
}

export function problem(device: DeviceName, options: ProblemOptions = {}): Problem {
  const { numExperts = 6, tokens = 24, topK = 2, width = 16, dtype = 'f32', seed = 0 } = options
  const experts = GroupedExperts.random({
    kind: 'gated',
    numExperts,
    inputDim: width,
    hiddenDim: 2 * width,
    outputDim: width,
    dtype,
    device,
    seed,
  })
  const x = Tensor.randn([tokens, width], { dtype, device, seed: seed + 1 })
  using logits = Tensor.randn([tokens, numExperts], { device, seed: seed + 2 })
  using router = new Router({ numExperts, topK, device })
  const routed = router.route(null, logits)
  const dispose = () => {
    experts.dispose()
    x.dispose()
    routed.dispose()
  }
  return { experts, x, routed, dispose }
}

/** What the experts give undivided. */
export async function whole({ experts, x, routed }: Problem) {
  using rows = experts.forward(x, routed)
  return await rows.toArray()
}

/** A manager whose policy does what `decision` says, whatever the load. */
export function managerOf(
  device: DeviceName,
  decision: { sms: readonly number[]; sliceOf: readonly number[] },
  enforcer: SliceEnforcer | null,
): SliceManager {
  const policy: AllocationPolicy = {
    name: 'told',
    decide({ load, constraints }) {
      // What is reserved is taken from the first slice; experts that are elsewhere leave the others where they were.
      const others = decision.sms.slice(1)
      const first = constraints.sms - others.reduce((sum, n) => sum + n, 0)
      return { sms: [first, ...others], sliceOf: decision.sliceOf.slice(0, load.length), reason: 'told' }
    },
  }
  const numExperts = decision.sliceOf.length
  const slices = decision.sms.length
  return new SliceManager({ device: describeDevice(device), numExperts, policy, enforcer, slices, dwellSteps: 0 })
}

/** Sizes for so many slices of a device: as even as its portions allow. */
export function sizes(device: DeviceName, slices: number): number[] {
  const { sms, granularity } = describeDevice(device)
  const portions = Math.floor(sms / granularity)
  const result = Array.from({ length: slices }, (_, s) => {
    const count = Math.floor(portions / slices) + (s < portions % slices ? 1 : 0)
    return count * granularity
  })
  result[0] = (result[0] ?? 0) + (sms % granularity)
  return result
}

export const modes = ['hardware', 'cooperative', 'none'] as const

/** A plan of a mode, and all that holds it. */
export function planOf(device: DeviceName, mode: (typeof modes)[number], slices: number, sliceOf: readonly number[]) {
  const enforcer = mode === 'none' ? null : new SliceEnforcer({ device, mode })
  const manager = managerOf(device, { sms: sizes(device, slices), sliceOf }, enforcer)
  const plan: Plan = manager.plan
  const dispose = () => {
    manager.dispose()
    enforcer?.dispose()
  }
  return { plan, partition: enforcer?.partition(plan) ?? null, manager, enforcer, dispose }
}

export async function liveMemory(device: DeviceName) {
  await Stream.default(device).synchronize()
  const { liveBytes, liveBuffers } = memoryStats(device)
  return { liveBytes, liveBuffers }
}
