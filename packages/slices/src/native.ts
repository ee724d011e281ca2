/** The one file of this package that touches the native binding: what a device can be cut into, and partitions of it. */
import type { DeviceName, Stream } from '@nexus/native'
import {
  adoptStream,
  call,
  deviceIndex,
  enforcementKinds,
  type PartitionHandle,
  type RawPartitionInfo,
} from '@nexus/native/binding'
import type { Enforcement, EnforcementKind } from './plan.js'

export type { PartitionHandle } from '@nexus/native/binding'

// A number that is not known is a kind of enforcement that this version knows nothing of: nothing is promised.
const kindOf = (number: number): EnforcementKind => enforcementKinds[number] ?? 'none'

/** What a device can be cut into. */
export interface PartitionFacts extends Omit<RawPartitionInfo, 'enforcement'> {
  readonly enforcement: EnforcementKind
}

export function partitionFacts(device: DeviceName): PartitionFacts {
  const raw = call((b) => b.slices.partitionInfo(deviceIndex(device)))
  return { ...raw, enforcement: kindOf(raw.enforcement) }
}

/** Builds a partition; takes milliseconds. Its streams keep what they need of it alive. */
export function createPartition(device: DeviceName, units: readonly number[]): PartitionHandle {
  return call((b) => b.slices.partitionCreate(deviceIndex(device), [...units]))
}

/** What each slice really got, in order. */
export function partitionGrants(partition: PartitionHandle): Enforcement[] {
  return call((b) => b.slices.partitionGrants(partition)).map(({ units, enforcement, reason }) => ({
    enforcement: kindOf(enforcement),
    grantedSms: units,
    reason,
  }))
}

export function partitionStream(
  device: DeviceName,
  partition: PartitionHandle,
  slice: number,
  priority: number,
  readAheadBytes: number,
): Stream {
  return adoptStream(
    device,
    call((b) => b.slices.partitionStream(partition, slice, priority, readAheadBytes)),
  )
}

export function releasePartition(partition: PartitionHandle): void {
  call((b) => b.native.release(partition))
}
