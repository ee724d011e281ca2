/**
 * `bench record`: traces of real layers. A layer routes real data whose mix drifts, and the counts of each of its steps are written down: data for the
 * simulator, in which nothing is drawn from a model of routing. The same options give the same counts.
 */
import type { DeviceSpec } from '@nexus/core'
import { readDigits } from '../recording/digits.js'
import { batches, type Drift, driftText } from '../recording/drift.js'
import { type LayerChoice, layerName, makeLayer } from '../recording/layers.js'
import { type TraceFile, traceFormat } from '../recording/trace-file.js'

export interface RecordOptions extends LayerChoice {
  readonly drift: Drift
  readonly steps: number
  /** Tokens of each step. */
  readonly tokens: number
  readonly seed: number
  readonly device: DeviceSpec
  readonly onProgress: (line: string) => void
}

/** What the project ships: a layer whose router has learned, and two whose architectures choose plainly and by groups. */
export const shippedTraces: readonly { readonly source: string; readonly drift: Drift }[] = [
  ...(['gradual', 'periodic', 'bursts', 'domains', 'flash-crowd'] as const).map((drift) => ({
    source: 'digits',
    drift,
  })),
  { source: 'olmoe', drift: 'periodic' },
  { source: 'deepseek_v3', drift: 'domains' },
]

const data =
  'UCI optical recognition of handwritten digits, test set: 1797 images of 8 × 8 pixels, each a token; the second half is routed'

/**
 * Steps are measured one after the other: a few milliseconds each.
 * @throws what the layer throws, and the RangeError of a wrong size
 */
export async function recordTrace(options: RecordOptions): Promise<TraceFile> {
  const { source, drift, steps, tokens, seed, device, onProgress } = options
  const digits = readDigits()
  const { layer, what, input } = await makeLayer(options, digits, device, seed)
  try {
    const counts: number[][] = []
    for (const batch of batches(drift, digits.route, tokens, seed)) {
      if (counts.length === steps) break
      const step = await layer.forward(input(batch))
      step.output.dispose()
      counts.push(Array.from(step.stats.counts))
      if (counts.length % 256 === 0) onProgress(`${layerName(source)}-${drift}: ${counts.length} of ${steps} steps`)
    }
    const { numExperts, topK } = layer.config.rule
    return {
      format: traceFormat,
      name: `${layerName(source)}-${drift}`,
      layer: what,
      data,
      drift: `${driftText(drift)}; ${tokens} tokens a step`,
      options: { source, experts: numExperts, topK, drift, tokens, seed },
      device: layer.device,
      counts,
    }
  } finally {
    layer.dispose()
  }
}
