/**
 * Energy first: leaves more and more of the chip to nobody, meters the layer's steps in each layout, and keeps the
 * cheapest that is fast enough. A step that waits for memory gains little from its last SMs, and they cost watts.
 */
import type { EnergyMonitor } from '@nexus/energy'
import type { Tensor } from '@nexus/native'
import { combine, type GroupedExperts, type Router } from '@nexus/router-kernels'
import { describeDevice, SliceEnforcer, SliceManager } from '@nexus/slices'
import { type Schedule, schedule } from '@nexus/streams'

/** A layer, and `x` [tokens, inputDim], where each step finds its input. */
export type Layer = { router: Router; experts: GroupedExperts; x: Tensor }
export type Aims = { monitor: Pick<EnergyMonitor, 'measure'>; idleSms: number[]; boundMs: number; windowMs: number }
/** What a step costs with so many SMs idle; `joules` is null for the `reason` given. */
export type Trial = { idleSms: number; ms: number; joules: number | null; reason: string | null }

export async function energyFirst({ router, experts, x }: Layer, { monitor, idleSms, boundMs, windowMs }: Aims) {
  const routed = router.route(x)
  const enforcer = new SliceEnforcer({ device: x.device, mode: 'hardware' })
  const manager = new SliceManager({ device: describeDevice(x.device), numExperts: routed.numExperts, enforcer })
  let steps: Schedule | null = null
  const dispose = () => [steps, manager, enforcer, routed].forEach((part) => void part?.dispose())
  const arrange = (idle: number) => {
    steps?.dispose()
    if (manager.plan.slices.some(({ name }) => name === 'idle')) manager.release('idle')
    if (idle > 0) manager.allocate({ name: 'idle', sms: idle })
    const [plan, partition] = [manager.plan, enforcer.partition(manager.plan)]
    steps = schedule(plan, { partition, tenants: [{ name: 'moe', experts, x, routed }] })
    const { stream, enqueue } = steps.tenant('moe')
    /** One step: the tokens are routed, the experts run in the plan's slices, their rows are combined. */
    const step = (): Tensor => {
      router.route(x, null, { out: routed, stream })
      using rows = enqueue()
      return combine(rows.value as Tensor, routed, { stream })
    }
    return { plan, stream, step, dispose }
  }
  const trials: Trial[] = []
  try {
    for (const sms of [0, ...idleSms]) {
      const { step, stream } = arrange(sms)
      let count = 0
      const run = async () => {
        for (const end = performance.now() + windowMs; performance.now() < end; count++) {
          step().dispose()
          await stream.synchronize()
        }
      }
      const { joules, reason, windowMs: took } = await monitor.measure(run)
      trials.push({ idleSms: sms, ms: took / count, joules: joules === null ? null : joules / count, reason })
    }
    const cost = ({ ms, joules }: Trial) => (ms <= boundMs && joules !== null ? joules : Infinity)
    const chosen = trials.reduce((a, b) => (cost(b) < cost(a) || (cost(a) === Infinity && b.ms < a.ms) ? b : a))
    return { trials, chosen, ...arrange(chosen.idleSms) }
  } catch (error) {
    dispose()
    throw error
  }
}
