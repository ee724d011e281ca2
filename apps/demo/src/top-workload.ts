/**
 * The work that `nexus-demo top` shows: a layer whose tokens prefer some experts, and whose preference moves round all of them every half minute. Step sizes
 * vary too, as they do for a server. Everything is made ahead, so that the steps themselves cost the host next to nothing.
 */
import {
  type DeviceName,
  EnergyMonitor,
  MoELayer,
  type MoELayerOptions,
  type SchedulingOptions,
  Tensor,
} from '@nexus/core'
import type { TopOptions } from './arguments.js'
import type { Moment } from './top-snapshot.js'

const topK = 2
const sizes = {
  cpu: { inputDim: 128, hiddenDim: 256, numExperts: 16, tokens: 128 },
  cuda: { inputDim: 1024, hiddenDim: 2048, numExperts: 64, tokens: 1024 },
} as const
/** Of the largest step. */
const parts = [1, 0.75, 0.5, 0.9]
const phases = 60
/** Long enough to see the drift in it. */
const windowSteps = 512
const cycleMs = 30_000
/** Steps that are queued before the host waits for them. */
const burst = 8

interface Batch {
  readonly x: Tensor
  readonly logits: Tensor
  readonly out: Tensor
}

/** How much more a token wants an expert, as the centre of the skew goes round. */
export function preference(expert: number, numExperts: number, phase: number): number {
  const distance = Math.abs(((expert / numExperts - phase / phases + 1.5) % 1) - 0.5)
  return 3 * (1 - 4 * distance)
}

function scheduling(strategy: TopOptions['strategy']): SchedulingOptions {
  switch (strategy) {
    case 'auto':
      return { strategy, slices: true, streams: { count: 4 } }
    case 'tiered':
      return { strategy, slices: { enforcement: 'hardware' } }
    case 'cooperative':
      return { strategy, slices: { enforcement: 'cooperative' } }
    case 'streams':
      return { strategy, streams: { count: 4 } }
    case 'fused':
      return { strategy }
  }
}

export class TopWorkload {
  readonly startMs = performance.now()
  readonly topK = topK
  readonly #layer: MoELayer
  readonly #monitor: EnergyMonitor
  readonly #batches: readonly Batch[]
  #step = 0

  private constructor(layer: MoELayer, monitor: EnergyMonitor, batches: readonly Batch[]) {
    this.#layer = layer
    this.#monitor = monitor
    this.#batches = batches
  }

  static async create(
    device: DeviceName,
    { strategy, seed }: Pick<TopOptions, 'strategy' | 'seed'>,
  ): Promise<TopWorkload> {
    const { tokens, ...shape } = sizes[device === 'cpu' ? 'cpu' : 'cuda']
    const monitor = new EnergyMonitor({ device })
    let layer: MoELayer | null = null
    try {
      const options: MoELayerOptions = {
        ...shape,
        topK,
        device,
        seed,
        energy: monitor,
        graphs: true,
        profiler: { windowSteps },
      }
      layer = await MoELayer.create({ ...options, ...scheduling(strategy) })
      return new TopWorkload(layer, monitor, makeBatches(layer, tokens, seed))
    } catch (error) {
      layer?.dispose()
      monitor.dispose()
      throw error
    }
  }

  /** Works until then, or until one of the signals fires. */
  async runUntil(timeMs: number, signals: readonly AbortSignal[]): Promise<void> {
    while (performance.now() < timeMs && !signals.some((signal) => signal.aborted)) {
      const phase = Math.floor(((performance.now() - this.startMs) % cycleMs) / (cycleMs / phases))
      for (let i = 0; i < burst; i++) {
        const batch = this.#batches[phase * parts.length + (this.#step++ % parts.length)]
        if (batch === undefined) throw new RangeError(`phase: expected one below ${phases}, got ${phase}`)
        const { x, logits, out } = batch
        // The last of a burst is measured, which waits for all of them.
        if (i < burst - 1) this.#layer.enqueue(x, { logits, out })
        else await this.#layer.forward(x, { logits, out })
      }
    }
  }

  moment(): Moment {
    const timeMs = performance.now()
    const sample = this.#monitor.samples({ sinceMs: timeMs - 5000 }).at(-1) ?? null
    return { timeMs, stats: this.#layer.performanceStats(), sample, unknown: this.#monitor.status().unknown }
  }

  dispose(): void {
    this.#layer.dispose()
    this.#monitor.dispose()
    for (const { x, logits, out } of this.#batches) for (const tensor of [x, logits, out]) tensor.dispose()
  }
}

/** A batch for each phase of the skew and each size of a step. */
function makeBatches(layer: MoELayer, tokens: number, seed: number): Batch[] {
  const { device, dtype, config } = layer
  const { inputDim, numExperts } = config.experts
  const inputs = parts.map((part, i) => {
    const count = Math.max(1, Math.round(part * tokens))
    const x = Tensor.randn([count, inputDim], { device, dtype, seed: (seed + i) % 2 ** 32 })
    return { count, x, out: Tensor.empty([count, layer.outputWidth], { device, dtype }) }
  })
  // One set of noise for all phases: what differs between them is the preference alone.
  let state = seed >>> 0
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return (state + 0.5) / 2 ** 32
  }
  const noise = Float32Array.from({ length: tokens * numExperts }, () => -Math.log(-Math.log(uniform())))
  return Array.from({ length: phases }, (_, phase) =>
    inputs.map(({ count, x, out }): Batch => {
      const values = Float32Array.from({ length: count * numExperts }, (_, i) => {
        return (noise[i] ?? 0) + preference(i % numExperts, numExperts, phase)
      })
      return { x, out, logits: Tensor.from(values, [count, numExperts], { device, dtype: 'f32' }) }
    }),
  ).flat()
}
