/** Several layers at once, each in its slice: `schedule` of `@nexus/streams` with a shorter way to say that a tenant is a layer. */
import { checkOptions, describe, type Tensor } from '@nexus/native'
import type { Plan } from '@nexus/slices'
import {
  type Schedule,
  type ScheduleOptions,
  schedule as scheduleTenants,
  type Tenant,
  type TenantOptions,
} from '@nexus/streams'
import { MoELayer } from './layer.js'

/** A layer as a tenant: its whole step runs in the slice. */
export interface LayerTenant extends TenantOptions {
  readonly layer: MoELayer
  /** [tokens, inputDim], the input of `run()`. A tenant's own `enqueue(x, { logits, out })` may be given another. */
  readonly x: Tensor
  /** f32 [tokens, numExperts]: takes the place of the router's own product. @default null */
  readonly logits?: Tensor | null
  /** Receives the output. @default a new tensor for each step, the `value` of its result, which the caller disposes of */
  readonly out?: Tensor
}

/** Options of {@link schedule}. */
export interface LayerScheduleOptions extends Omit<ScheduleOptions, 'tenants'> {
  /** 1 to 1024; layers, and whatever else `@nexus/streams` takes. */
  readonly tenants: readonly (LayerTenant | Tenant)[]
}

const tenantKeys = ['name', 'slice', 'stream', 'priority', 'layer', 'x', 'logits', 'out']

function isLayerTenant(tenant: LayerTenant | Tenant): tenant is LayerTenant {
  return typeof tenant === 'object' && tenant !== null && !(tenant instanceof MoELayer) && 'layer' in tenant
}

function asTenant(tenant: LayerTenant | Tenant, i: number): Tenant {
  if (!isLayerTenant(tenant)) return tenant
  checkOptions(`tenants[${i}]`, tenant, tenantKeys)
  const { layer, x, logits, out, ...placement } = tenant
  if (!(layer instanceof MoELayer)) {
    throw new TypeError(`tenants[${i}].layer: expected a MoELayer, got ${describe(layer)}`)
  }
  const options = { ...(logits !== undefined && { logits }), ...(out !== undefined && { out }) }
  return { ...placement, tenant: layer, args: [x, options] }
}

/**
 * Puts layers, experts and anything that queues work into the slices of a plan; see `schedule` of `@nexus/streams`.
 *
 * @example
 * const steps = schedule(manager.plan, {
 *   partition: enforcer.partition(manager.plan),
 *   tenants: [
 *     { layer: decode, x: few, slice: 'decode' },
 *     { layer: prefill, x: many, slice: 'prefill' },
 *   ],
 * })
 * await steps.run()
 * @throws TypeError or RangeError naming what is wrong
 */
export function schedule(plan: Plan, options: LayerScheduleOptions): Schedule {
  if (!Array.isArray(options?.tenants)) return scheduleTenants(plan, options as ScheduleOptions)
  return scheduleTenants(plan, { ...options, tenants: options.tenants.map(asTenant) })
}
