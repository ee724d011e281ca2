/** How a ring of counts, which `@nexus/profiler/native` owns, is handed to what writes it: routers and layers. */
import type { CountRingHandle } from './binding.js'
import { describe } from './options.js'

/** The key of {@link CountRingHolder}'s one method; registered, so that copies of this package agree. */
export const countRingHandle: unique symbol = Symbol.for('nexus.countRing')

/** A `CountRing` of `@nexus/profiler/native`. */
export interface CountRingHolder {
  /** Experts of the router that may write it. */
  readonly numExperts: number
  /** @internal */
  [countRingHandle](): CountRingHandle
}

/**
 * The raw handle of a ring.
 * @throws TypeError when it is none; DisposedError
 */
export function countRingOf(ring: CountRingHolder, name = 'ring'): CountRingHandle {
  if (typeof ring !== 'object' || ring === null || typeof Reflect.get(ring, countRingHandle) !== 'function') {
    throw new TypeError(`${name}: expected a CountRing, got ${describe(ring)}`)
  }
  return ring[countRingHandle]()
}
