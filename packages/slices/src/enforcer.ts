/**
 * Holds a device to layouts. By partitions, which are built ahead and counted: several managers may ask for the same layout, and it goes with
 * the last of them. Or by cooperation, where nothing is built: kernels divide their blocks by the shares of the plan.
 */
import {
  checkOneOf,
  checkOptions,
  type DeviceName,
  type DeviceSpec,
  DisposedError,
  describe,
  resolveDevice,
  UnsupportedError,
} from '@nexus/native'
import { SliceAllocationError } from './errors.js'
import { type PartitionFacts, partitionFacts } from './native.js'
import { SlicePartition } from './partition.js'
import type { Enforcement, Enforcer, Layout } from './plan.js'

/**
 * `hardware`: partitions of the device. `cooperative`: shares of the kernels' blocks. `auto`: hardware where the device can, else
 * cooperative, and the budgets say why.
 */
export type EnforcerMode = 'auto' | 'hardware' | 'cooperative'

/** Options of {@link SliceEnforcer}. */
export interface SliceEnforcerOptions {
  /** @default 'auto' */
  readonly device?: DeviceSpec
  /** @default 'auto' */
  readonly mode?: EnforcerMode
}

/** What an enforcer holds now, and what it has done. */
export interface SliceEnforcerStats {
  /** What it does, 'auto' decided: `hardware` builds partitions, and each budget says what they are worth. */
  readonly mode: 'hardware' | 'cooperative'
  /** Why it is so, for people. */
  readonly reason: string
  /** Layouts that somebody has prepared and not released. */
  readonly layouts: number
  /** Partitions that exist: those of the layouts, and those whose streams have not done their work yet. */
  readonly partitions: number
  /** Partitions built so far. */
  readonly builds: number
  /** Layouts that could not be built. */
  readonly failures: number
}

interface Entry {
  readonly partition: SlicePartition | null
  readonly enforcements: readonly Enforcement[]
  users: number
}

/** Lanes that one cooperative launch can tell apart. */
const mostLanes = 64

/**
 * @example
 * ```ts
 * using enforcer = new SliceEnforcer({ device: 'cuda' })
 * const manager = new SliceManager({ device: describeDevice('cuda'), numExperts: 128, enforcer })
 * manager.plan.slices[0]?.enforcement                             // 'hardware'
 * enforcer.partition(manager.plan)?.stream('hot')
 * ```
 */
export class SliceEnforcer implements Enforcer {
  readonly device: DeviceName
  readonly #facts: PartitionFacts
  readonly #asked: EnforcerMode
  readonly #entries = new Map<string, Entry>()
  /** Partitions that were released and are not closed yet. */
  readonly #closing = new Set<SlicePartition>()
  #mode: 'hardware' | 'cooperative'
  #reason: string
  #builds = 0
  #failures = 0
  #disposed = false

  /**
   * @throws TypeError or RangeError naming the option; UnsupportedError when `mode` is 'hardware' and the device cannot be cut
   */
  constructor(options: SliceEnforcerOptions = {}) {
    checkOptions('options', options, ['device', 'mode'])
    this.#asked = checkOneOf('options.mode', options.mode ?? 'auto', ['auto', 'hardware', 'cooperative'])
    this.device = resolveDevice(options.device ?? 'auto')
    this.#facts = partitionFacts(this.device)
    const { enforcement, reason } = this.#facts
    if (this.#asked === 'hardware' && enforcement === 'none') {
      throw new UnsupportedError(`options.mode: ${this.device} cannot be cut into slices: ${reason}`)
    }
    const hard = this.#asked === 'hardware' || (this.#asked === 'auto' && enforcement === 'hardware')
    this.#mode = hard ? 'hardware' : 'cooperative'
    this.#reason = hard ? reason : this.#asked === 'cooperative' ? 'cooperative slices were asked for' : reason
  }

  /** What it does and where: `partitions of cuda:0`, or `cooperative shares of cuda:0`. */
  get name(): string {
    return `${this.#mode === 'hardware' ? 'partitions' : 'cooperative shares'} of ${this.device}`
  }

  /** What it does: 'auto' decided. */
  get mode(): 'hardware' | 'cooperative' {
    return this.#mode
  }

  /**
   * Builds a layout, or counts one more user of it.
   * @throws SliceAllocationError with the `cause` when it cannot be built: nothing is left of it then; DisposedError
   */
  prepare(layout: Layout): readonly Enforcement[] {
    if (this.#disposed) throw new DisposedError(`${this.name}: the enforcer has been disposed of`)
    const found = this.#entries.get(layout.key)
    if (found) {
      found.users++
      return found.enforcements
    }
    const entry = this.#mode === 'hardware' ? this.#build(layout) : this.#share(layout)
    this.#entries.set(layout.key, entry)
    return entry.enforcements
  }

  /** One user less; with the last one the partition goes, when its streams have done their work. */
  release(layout: Layout): void {
    const entry = this.#entries.get(layout.key)
    if (!entry) return
    entry.users--
    if (entry.users > 0) return
    this.#entries.delete(layout.key)
    this.#drop(entry)
  }

  /**
   * The partition of a layout that is built, given the layout, a plan, or the key of either; `null` when it is not built or, in
   * cooperative mode, never is. Who uses it for longer than the plan holds takes a `hold()`.
   */
  partition(layout: { readonly key: string } | string): SlicePartition | null {
    const key = typeof layout === 'string' ? layout : layout?.key
    if (typeof key !== 'string') throw new TypeError(`layout: expected a layout or its key, got ${describe(layout)}`)
    return this.#entries.get(key)?.partition ?? null
  }

  stats(): SliceEnforcerStats {
    let built = 0
    for (const { partition } of this.#entries.values()) if (partition !== null) built++
    return {
      mode: this.#mode,
      reason: this.#reason,
      layouts: this.#entries.size,
      partitions: built + this.#closing.size,
      builds: this.#builds,
      failures: this.#failures,
    }
  }

  /** Gives every layout up, whoever uses it. Preparing one after that throws, releasing does nothing. Twice is fine. */
  dispose(): void {
    this.#disposed = true
    const entries = [...this.#entries.values()]
    this.#entries.clear()
    for (const entry of entries) this.#drop(entry)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #build(layout: Layout): Entry {
    try {
      const partition = SlicePartition.build(this.device, layout.slices)
      this.#builds++
      const enforcements = partition.slices.map(({ units, enforcement, reason }) => ({
        enforcement,
        grantedSms: units,
        reason,
      }))
      return { partition, enforcements, users: 1 }
    } catch (error) {
      const cause = error instanceof SliceAllocationError ? error.cause : error
      // What the device turns out not to do at all it will not do later either; any other failure is the caller's to hear of.
      if (this.#asked !== 'auto' || !(cause instanceof UnsupportedError)) {
        this.#failures++
        throw error
      }
      this.#mode = 'cooperative'
      this.#reason = cause.message
      return this.#share(layout)
    }
  }

  #share(layout: Layout): Entry {
    if (layout.slices.length > mostLanes) {
      this.#failures++
      throw new SliceAllocationError(
        `cooperative slices: expected at most ${mostLanes} in a layout, got ${layout.slices.length}`,
      )
    }
    const reason = `shares of a kernel's blocks: ${this.#reason}`
    const enforcements = layout.slices.map(
      ({ sms }): Enforcement => ({ enforcement: 'cooperative', grantedSms: sms, reason }),
    )
    return { partition: null, enforcements, users: 1 }
  }

  #drop({ partition }: Entry): void {
    if (partition === null) return
    partition.dispose()
    if (partition.isClosed) return
    this.#closing.add(partition)
    void partition.closed().then(() => this.#closing.delete(partition))
  }
}
