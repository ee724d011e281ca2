/**
 * Recorded steps: a cache that warms up, captures and replays under a memory budget, with the reason for every step that it could not, and
 * the token buckets that let one graph serve every batch size. `Graph` records any stream work by hand.
 * @packageDocumentation
 */
export { Graph } from '@nexus/native'
export { tokenBucket } from './bucket.js'
export { GraphCache } from './cache.js'
export { type GraphKeyParts, graphKey, type KeyPart } from './key.js'
export type {
  CachedGraph,
  FallbackReason,
  GraphCacheOptions,
  GraphCacheStats,
  GraphRun,
  GraphStep,
} from './model.js'
export { type CapturePolicy, CapturePolicyError, type CaptureQuestion, capturePolicies } from './policy.js'
