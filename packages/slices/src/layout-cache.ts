/**
 * Layouts that are built, by key: building takes milliseconds, switching does not. The one used longest ago goes first, but never the
 * one in use.
 */
import type { DeviceDescription } from './device.js'
import { SliceAllocationError } from './errors.js'
import { type Enforcement, type Enforcer, type Layout, layoutOf } from './plan.js'

const nobody = 'no enforcer was given: the budget is a plan, and nothing holds the device to it'

/** Layouts whose keys are remembered: sizes that a policy goes back and forth between are few. */
const mostNamed = 8

export class LayoutCache {
  readonly #enforcer: Enforcer | null
  readonly #device: DeviceDescription
  readonly #most: number
  #inUse: string | null = null
  /** The key that was used last. */
  #latest: string | null = null
  #named: Layout[] = []
  /** In order of use, the latest last. */
  readonly #built = new Map<string, { readonly layout: Layout; readonly enforcements: readonly Enforcement[] }>()

  constructor(enforcer: Enforcer | null, device: DeviceDescription, most: number) {
    this.#enforcer = enforcer
    this.#device = device
    this.#most = most
  }

  /** The layout of these slices: a key is put together once. */
  layoutOf(slices: Layout['slices']): Layout {
    for (const each of this.#named) if (sameSlices(each.slices, slices)) return each
    const layout = layoutOf(this.#device.name, slices)
    if (this.#named.length >= mostNamed) this.#named.shift()
    this.#named.push(layout)
    return layout
  }

  /**
   * What is done for each slice of a layout, which is built if it was not.
   * @throws SliceAllocationError when the enforcer throws, or promises more SMs than there are
   */
  prepare(layout: Layout): readonly Enforcement[] {
    const found = this.#built.get(layout.key)
    if (found && layout.key === this.#latest && this.#built.size <= this.#most) return found.enforcements
    const entry = found ?? { layout, enforcements: this.#enforce(layout) }
    this.#latest = layout.key
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
    this.#latest = null
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

function sameSlices(a: Layout['slices'], b: Layout['slices']): boolean {
  if (a.length !== b.length) return false
  for (let s = 0; s < a.length; s++) if (a[s]?.sms !== b[s]?.sms || a[s]?.name !== b[s]?.name) return false
  return true
}
