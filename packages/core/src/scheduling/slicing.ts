/**
 * The slices of a layer: its manager, and the enforcer that holds the device to the plans. A manager of the caller's may serve several layers:
 * they share one enforcer, and the first of them that lives feeds the manager with its load, so that two layers never pull a plan to and fro.
 */
import type { DeviceName } from '@nexus/native'
import { linearShapes } from '@nexus/router-kernels/internal'
import {
  auxSlice,
  type DeviceDescription,
  describeDevice,
  type Layout,
  type Plan,
  SliceEnforcer,
  SliceManager,
} from '@nexus/slices'
import type { LayerConfig } from '../options.js'
import { layerCost } from './cost.js'
import type { Scheduling } from './options.js'

type SliceScheduling = NonNullable<Scheduling['slices']>

/** Who shares a caller's manager. */
interface Shared {
  readonly enforcers: Map<SliceEnforcer['mode'], SliceEnforcer>
  readonly users: Set<Slicing>
}
const sharing = new WeakMap<SliceManager, Shared>()

/** Layouts that a layer's own manager keeps built. */
const keptLayouts = 8

/** A layer's part in a manager. */
export class Slicing {
  readonly manager: SliceManager
  readonly enforcer: SliceEnforcer
  readonly #own: boolean

  /**
   * @throws RangeError when a given manager is for other experts or another device; SliceAllocationError when the device cannot be cut
   * as asked; UnsupportedError when it cannot be cut at all
   */
  constructor(options: SliceScheduling, strategy: Scheduling['strategy'], config: LayerConfig) {
    const mode = strategy === 'tiered' ? 'hardware' : strategy === 'cooperative' ? 'cooperative' : options.enforcement
    const { manager: given } = options
    this.#own = given === null
    if (given === null) {
      const device = portioned(describeDevice(config.device), options.total)
      this.enforcer = new SliceEnforcer({ device: config.device, mode })
      try {
        this.manager = makeManager(options, config, device, this.enforcer)
      } catch (error) {
        this.enforcer.dispose()
        throw error
      }
      return
    }
    checkManager(given, config)
    this.manager = given
    this.enforcer = this.#join(given, config.device, mode)
  }

  /** True for the one layer whose load the manager is fed with. */
  get feeds(): boolean {
    if (this.#own) return true
    const [first] = sharing.get(this.manager)?.users ?? []
    return first === this
  }

  dispose(): void {
    if (this.#own) {
      this.manager.dispose()
      this.enforcer.dispose()
      return
    }
    const shared = sharing.get(this.manager)
    if (shared === undefined || !shared.users.delete(this) || shared.users.size > 0) return
    sharing.delete(this.manager)
    for (const enforcer of shared.enforcers.values()) enforcer.dispose()
  }

  #join(manager: SliceManager, device: DeviceName, mode: 'auto' | 'hardware' | 'cooperative'): SliceEnforcer {
    const shared = sharing.get(manager) ?? { enforcers: new Map(), users: new Set() }
    const made = new SliceEnforcer({ device, mode })
    const enforcer = shared.enforcers.get(made.mode) ?? made
    if (enforcer !== made) made.dispose()
    shared.enforcers.set(enforcer.mode, enforcer)
    shared.users.add(this)
    sharing.set(manager, shared)
    return enforcer
  }
}

/** The layout of a plan, as an enforcer takes it. */
export function layoutOf({ key, slices }: Plan): Layout {
  return { key, slices: slices.map(({ name, grantedSms }) => ({ name, sms: grantedSms })) }
}

/** Slices in whole portions of the device, of which there are `total`. */
function portioned(device: DeviceDescription, total: number | null): DeviceDescription {
  if (total === null) return device
  const most = Math.floor(device.sms / device.granularity)
  if (total > most) {
    const why = `${device.sms} SMs of ${device.name} in portions of ${device.granularity}`
    throw new RangeError(`slices.total: expected at most ${most} (${why}), got ${total}`)
  }
  const granularity = Math.floor(device.sms / total / device.granularity) * device.granularity
  return { ...device, granularity, minSms: Math.max(device.minSms, granularity) }
}

function makeManager(
  options: SliceScheduling,
  config: LayerConfig,
  device: DeviceDescription,
  enforcer: SliceEnforcer,
): SliceManager {
  const manager = new SliceManager({
    device,
    numExperts: config.rule.numExperts,
    cost: options.cost ?? layerCost(config, device),
    slices: options.count,
    enforcer,
    maxLayouts: keptLayouts,
    ...(options.policy && { policy: options.policy }),
  })
  try {
    const sms = sharedExpertSms(config, device)
    if (sms > 0 && enforcer.mode === 'hardware') manager.allocate({ name: auxSlice, sms })
    // Green contexts take milliseconds to make: those of the first changes are there before the first step. The CPU's take none.
    if (enforcer.mode === 'hardware' && config.device !== 'cpu') manager.buildAhead()
    return manager
  } catch (error) {
    manager.dispose()
    throw error
  }
}

/** SMs for the shared expert beside the others: its part of a token's arithmetic, at most a third; 0 where there are too few. */
function sharedExpertSms(
  { experts, shared, rule }: LayerConfig,
  { sms, granularity, minSms }: DeviceDescription,
): number {
  const least = Math.max(minSms, granularity)
  if (shared === null || sms < 3 * least) return 0
  const work = (mlp: typeof experts) => linearShapes(mlp).reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  const part = work(shared.mlp) / (work(shared.mlp) + rule.topK * work(experts))
  const most = Math.floor(sms / 3 / granularity) * granularity
  return Math.min(most, Math.max(least, Math.round((part * sms) / granularity) * granularity))
}

function checkManager(manager: SliceManager, { rule, device }: LayerConfig): void {
  if (manager.numExperts !== rule.numExperts) {
    throw new RangeError(
      `slices.manager: expected one for ${rule.numExperts} experts, got one for ${manager.numExperts}`,
    )
  }
  const { sms, name } = describeDevice(device)
  if (manager.device.sms !== sms) {
    const got = `one of ${manager.device.name} with ${manager.device.sms}`
    throw new RangeError(`slices.manager: expected one of ${name} with ${sms} SMs, got ${got}`)
  }
}
