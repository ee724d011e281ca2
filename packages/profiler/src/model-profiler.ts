/** One profiler for each layer of a model, by number, made when a layer is first seen. */
import type { ExpertProfilerOptions, ProfilerSnapshot, ProfilerState, StepSample } from './model.js'
import { ExpertProfiler } from './profiler.js'
import { checkInteger, checkObject, describe, resolveOptions } from './validate.js'

/** Everything a {@link ModelProfiler} knows, as JSON-safe data. */
export interface ModelProfilerState {
  readonly format: 'nexus-model-profiler/1'
  readonly options: Required<ExpertProfilerOptions>
  readonly layers: readonly { readonly layer: number; readonly state: ProfilerState }[]
}

const maxLayer = 65535

/**
 * Follows the load of all layers of a model.
 *
 * @example
 * ```ts
 * const profiler = new ModelProfiler({ numExperts: 128 })
 * profiler.record(3, { counts: stats.counts })
 * profiler.snapshot().get(3)?.forecast
 * ```
 */
export class ModelProfiler {
  /** The options of every layer's profiler, with their defaults filled in. */
  readonly options: Required<ExpertProfilerOptions>
  readonly #layers = new Map<number, ExpertProfiler>()

  /** @throws TypeError or RangeError that names the option, what came and what was expected. */
  constructor(options: ExpertProfilerOptions) {
    this.options = Object.freeze(resolveOptions(options))
  }

  /** The profiler of a layer, 0 to 65535; a new one when the layer is first asked for. */
  layer(layer: number): ExpertProfiler {
    checkInteger('layer', layer, 0, maxLayer)
    let profiler = this.#layers.get(layer)
    if (!profiler) {
      profiler = new ExpertProfiler(this.options)
      this.#layers.set(layer, profiler)
    }
    return profiler
  }

  /** Takes one step of a layer into account: `layer(n).record(step)`. */
  record(layer: number, step: StepSample): void {
    this.layer(layer).record(step)
  }

  /** The load of each layer seen so far, by number, ascending. */
  snapshot(): Map<number, ProfilerSnapshot> {
    return new Map(this.#ordered().map(([layer, profiler]) => [layer, profiler.snapshot()]))
  }

  /** The whole state as JSON-safe data; {@link ModelProfiler.restore} takes it back. */
  toJSON(): ModelProfilerState {
    return {
      format: 'nexus-model-profiler/1',
      options: { ...this.options },
      layers: this.#ordered().map(([layer, profiler]) => ({ layer, state: profiler.toJSON() })),
    }
  }

  /**
   * A profiler that continues exactly where the one that wrote `state` stood.
   * @throws TypeError or RangeError that names the field which is missing or wrong.
   */
  static restore(state: ModelProfilerState): ModelProfiler {
    checkObject('state', state, ['format', 'options', 'layers'])
    if (state.format !== 'nexus-model-profiler/1') {
      throw new TypeError(`state.format: expected "nexus-model-profiler/1", got ${describe(state.format)}`)
    }
    const profiler = new ModelProfiler(state.options)
    if (!Array.isArray(state.layers))
      throw new TypeError(`state.layers: expected an array, got ${describe(state.layers)}`)
    for (const [i, entry] of state.layers.entries()) {
      checkObject(`state.layers[${i}]`, entry, ['layer', 'state'])
      const layer = checkInteger(`state.layers[${i}].layer`, entry.layer, 0, maxLayer)
      if (profiler.#layers.has(layer)) throw new RangeError(`state.layers[${i}].layer: ${layer} is there twice`)
      const restored = ExpertProfiler.restore(entry.state as ProfilerState)
      if (restored.options.numExperts !== profiler.options.numExperts) {
        throw new RangeError(
          `state.layers[${i}].state.options.numExperts: expected ${profiler.options.numExperts}, got ${restored.options.numExperts}`,
        )
      }
      profiler.#layers.set(layer, restored)
    }
    return profiler
  }

  #ordered(): [number, ExpertProfiler][] {
    return [...this.#layers].sort(([a], [b]) => a - b)
  }
}
