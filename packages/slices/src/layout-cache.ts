/**
 * Layouts that are built, by key: building takes milliseconds, switching does not. The one used longest ago goes first, but never the
 * one in use.
 */
import type { DeviceDescription } from './device.js'
import { SliceAllocationError } from './errors.js'
import type { Enforcement, Enforcer, Layout } from './plan.js'

const nobody = 'no enforcer was given: the budget is a plan, and nothing holds the device to it'

export class LayoutCache {
  readonly #enforcer: Enforcer | null
  readonly #device: DeviceDescription
  readonly #most: number
  #inUse: string | null = null
  /** In order of use, the latest last. */
  readonly #built = new Map<string, { readonly layout: Layout; readonly enforcements: readonly Enforcement[] }>()

  constructor(enforcer: Enforcer | null, device: DeviceDescription, most: number) {
    this.#enforcer = enforcer
    this.#device = device
    this.#most = most
  }

  /**
   * What is done for each slice of a layout, which is built if it was not.
   * @throws SliceAllocationError when the enforcer throws, or promises more SMs than there are
   */
  prepare(layout: Layout): readonly Enforcement[] {
    const found = this.#built.get(layout.key)
    const entry = found ?? { layout, enforcements: this.#enforce(layout) }
    this.#built.delete(layout.key)
    this.#built.set(layout.key, entry)
    for (const [key, old] of this.#built) {
      if (this.#built.size <= this.#most) break
      if (key === this.#inUse || key === layout.key) continue
      this.#built.delete(key)
      this.#enforcer?.release(old.layout)
    }
    return entry.enforcements
  }

  /** Says which layout is in use, and makes it the one used last. */
  use(key: string): void {
    this.#inUse = key
    const entry = this.#built.get(key)
    if (entry) this.prepare(entry.layout)
  }

  /** The layouts that are built, the one used last first. */
  built(): Layout[] {
    return [...this.#built.values()].map(({ layout }) => layout).reverse()
  }

  clear(): void {
    const layouts = this.built()
    this.#built.clear()
    for (const layout of layouts) this.#enforcer?.release(layout)
  }

  #enforce(layout: Layout): readonly Enforcement[] {
    const enforcer = this.#enforcer
    if (enforcer === null) {
      return layout.slices.map(({ sms }) => ({ enforcement: 'none', grantedSms: sms, reason: nobody }))
    }
    let held: readonly Enforcement[]
    try {
      held = enforcer.prepare(layout)
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause)
      const sms = cause instanceof SliceAllocationError &&
        cause.requestedSms !== null && { requestedSms: cause.requestedSms }
      throw new SliceAllocationError(`enforcer '${enforcer.name}' could not build '${layout.key}': ${why}`, {
        cause,
        ...sms,
      })
    }
    const total = held.reduce((sum, { grantedSms }) => sum + grantedSms, 0)
    if (held.length !== layout.slices.length || !(total <= this.#device.sms)) {
      enforcer.release(layout)
      throw new SliceAllocationError(
        `enforcer '${enforcer.name}': expected ${layout.slices.length} slices of at most ${this.#device.sms} SMs together ` +
          `for '${layout.key}', got ${held.length} of ${total}`,
        { requestedSms: total, freeSms: this.#device.sms },
      )
    }
    return held
  }
}
