/**
 * A layout, built: disjoint sets of a device's SMs and the streams that keep to them. Streams are made once for a slice, priority and
 * index, and belong to the partition. One that is given up goes when nobody holds it any more and its streams have done their work.
 */
import {
  checkInteger,
  checkOptions,
  type DeviceName,
  type DeviceSpec,
  DisposedError,
  describe,
  resolveDevice,
  type Stream,
} from '@nexus/native'
import { SliceAllocationError } from './errors.js'
import { createPartition, type PartitionHandle, partitionGrants, partitionStream, releasePartition } from './native.js'
import type { EnforcementKind } from './plan.js'

/** A slice of a partition. */
export interface PartitionSlice {
  readonly name: string
  /** SMs (CPU: virtual workers) that it really has. */
  readonly units: number
  readonly enforcement: EnforcementKind
  /** Why it is so, for people. */
  readonly reason: string
}

/** Which of a slice's streams. */
export interface SliceStreamOptions {
  /**
   * 0 is normal, negative more urgent, as in CUDA; the CPU ignores it.
   * @default 0
   */
  readonly priority?: number
  /**
   * Streams of a slice by number, 0 to 1023: those of different numbers run side by side.
   * @default 0
   */
  readonly index?: number
  /**
   * Bytes of weights that its kernels have under way at a time, about: a bandwidth-bound slice that asks for more than the memory can bring makes
   * its neighbours' loads wait. Advisory, whoever enforces the SMs; see `StreamOptions` of `@nexus/native`.
   * @default as many as their buffers hold
   */
  readonly readAheadBytes?: number
}

let live = 0

/** What {@link SlicePartition.hold} returns. */
export interface PartitionHold {
  /** Lets go. Twice is fine. */
  dispose(): void
  [Symbol.dispose](): void
}

/**
 * @example
 * ```ts
 * using partition = SlicePartition.build('cpu', [{ name: 'decode', sms: 2 }, { name: 'rest', sms: 6 }])
 * const stream = partition.stream('decode')       // its work runs on two workers
 * ```
 */
export class SlicePartition {
  readonly device: DeviceName
  /** In the order they were asked for. */
  readonly slices: readonly PartitionSlice[]
  readonly #handle: PartitionHandle
  readonly #streams = new Map<string, Stream>()
  #holds = 0
  #state: 'open' | 'given up' | 'closing' | 'closed' = 'open'
  #tellClosed: () => void = () => undefined
  readonly #whenClosed = new Promise<void>((resolve) => {
    this.#tellClosed = resolve
  })

  private constructor(device: DeviceName, handle: PartitionHandle, slices: readonly PartitionSlice[]) {
    this.device = device
    this.slices = slices
    this.#handle = handle
    live++
  }

  /**
   * Builds a partition. Takes milliseconds: do it ahead.
   * @param device - whose SMs
   * @param slices - at least one; names differ, sizes are of at least one SM
   * @throws TypeError or RangeError for what is no list of slices; SliceAllocationError, with the `cause`, when the device cannot be cut
   * that way or the building fails
   */
  static build(device: DeviceSpec, slices: readonly { readonly name: string; readonly sms: number }[]): SlicePartition {
    const on = resolveDevice(device)
    checkSlices(slices)
    const requestedSms = slices.reduce((sum, { sms }) => sum + sms, 0)
    let handle: PartitionHandle | null = null
    try {
      handle = createPartition(
        on,
        slices.map(({ sms }) => sms),
      )
      const grants = partitionGrants(handle)
      if (grants.length !== slices.length) {
        throw new RangeError(`expected ${slices.length} slices from the device, got ${grants.length}`)
      }
      const made = slices.map(({ name }, i): PartitionSlice => {
        const { grantedSms = 0, enforcement = 'none', reason = '' } = grants[i] ?? {}
        return { name, units: grantedSms, enforcement, reason }
      })
      return new SlicePartition(on, handle, made)
    } catch (cause) {
      if (handle !== null) releasePartition(handle)
      const why = cause instanceof Error ? cause.message : describe(cause)
      const sizes = slices.map(({ name, sms }) => `${name}=${sms}`).join(' ')
      throw new SliceAllocationError(`${on} could not be cut into ${sizes}: ${why}`, { cause, requestedSms })
    }
  }

  /** Partitions of this process that are not closed yet: for leak tests. */
  static get live(): number {
    return live
  }

  /** The number of a slice, by name or number. @throws TypeError, RangeError when there is none such */
  indexOf(slice: string | number): number {
    if (typeof slice === 'number') return checkInteger('slice', slice, 0, this.slices.length - 1)
    const found = this.slices.findIndex(({ name }) => name === slice)
    if (found >= 0) return found
    const expected = `one of ${this.slices.map(({ name }) => name).join(', ')}`
    if (typeof slice !== 'string') throw new TypeError(`slice: expected ${expected}, got ${describe(slice)}`)
    throw new RangeError(`slice: expected ${expected}, got ${describe(slice)}`)
  }

  /**
   * A stream whose work keeps to the slice: always the same one for the same options. The partition disposes of it.
   * @throws TypeError, RangeError for wrong arguments; DisposedError; DeviceError
   */
  stream(slice: string | number, options?: SliceStreamOptions): Stream {
    checkOptions('options', options, ['priority', 'index', 'readAheadBytes'])
    const number = this.indexOf(slice)
    const priority = checkInteger('priority', options?.priority ?? 0, -1000, 0)
    const index = checkInteger('index', options?.index ?? 0, 0, 1023)
    const given = options?.readAheadBytes
    const readAhead = given === undefined ? 0 : checkInteger('readAheadBytes', given, 1)
    this.#check()
    const key = `${number} ${priority} ${index} ${readAhead}`
    const found = this.#streams.get(key)
    if (found !== undefined) return found
    const made = partitionStream(this.device, this.#handle, number, priority, readAhead)
    this.#streams.set(key, made)
    return made
  }

  /** Keeps the partition and its streams usable after it was given up, until the hold is disposed of. */
  hold(): PartitionHold {
    this.#check()
    this.#holds++
    let held = true
    const dispose = () => {
      if (!held) return
      held = false
      this.#holds--
      if (this.#state === 'given up' && this.#holds === 0) this.#close()
    }
    return { dispose, [Symbol.dispose]: dispose }
  }

  /** True when it cannot be used any more: it was given up, and nobody holds it. */
  get disposed(): boolean {
    return this.#state === 'closing' || this.#state === 'closed'
  }

  /** True when nothing of it is left. */
  get isClosed(): boolean {
    return this.#state === 'closed'
  }

  /** Resolves when nothing of it is left: it was given up, nobody holds it, and its streams have done their work. */
  closed(): Promise<void> {
    return this.#whenClosed
  }

  /** Gives it up: it goes when nobody holds it and its streams have done what is queued. Never waits. Twice is fine. */
  dispose(): void {
    if (this.#state === 'open') this.#state = 'given up'
    if (this.#state === 'given up' && this.#holds === 0) this.#close()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #check(): void {
    if (this.disposed) throw new DisposedError('this SlicePartition has been disposed of')
  }

  #close(): void {
    this.#state = 'closing'
    const streams = [...this.#streams.values()]
    this.#streams.clear()
    const release = () => {
      for (const stream of streams) stream.dispose()
      releasePartition(this.#handle)
      live--
      this.#state = 'closed'
      this.#tellClosed()
    }
    if (streams.length === 0) {
      release()
      return
    }
    // What went wrong in a stream is told to those who queued it; here only the end of the work matters.
    void Promise.all(streams.map((stream) => stream.synchronize().catch(() => undefined))).then(release)
  }
}

function checkSlices(slices: readonly { readonly name: string; readonly sms: number }[]): void {
  if (!Array.isArray(slices)) throw new TypeError(`slices: expected an array, got ${describe(slices)}`)
  if (slices.length === 0) throw new RangeError('slices: expected at least one')
  const names = new Set<string>()
  for (const [i, slice] of slices.entries()) {
    checkOptions(`slices[${i}]`, slice, ['name', 'sms'])
    if (typeof slice?.name !== 'string' || slice.name === '') {
      throw new TypeError(`slices[${i}].name: expected a name, got ${describe(slice?.name)}`)
    }
    if (names.has(slice.name)) throw new RangeError(`slices[${i}].name: there are two slices '${slice.name}'`)
    names.add(slice.name)
    checkInteger(`slices[${i}].sms`, slice.sms, 1)
  }
}
