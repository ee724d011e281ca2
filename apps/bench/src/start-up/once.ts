/**
 * What a new process does before its first result: loads the addon, makes a layer, runs it. In a process of its own, whose standard output is
 * one line of JSON.
 */
import { MoELayer, Tensor } from '@nexus/core'
import { layerOptions } from '../layer-options.js'
import { median } from '../median.js'
import { readPart } from '../native.js'
import type { Shape } from '../shapes.js'

/** Milliseconds. */
export interface StartUpTimes {
  /** From the start of the process until the layer has its weights, which are made on the device. */
  readonly layerMs: number
  /** From the call of `forward` until its result is there. */
  readonly firstMs: number
  readonly secondMs: number
  /** The median of the ten behind it. */
  readonly laterMs: number
}

const later = 10

export async function startOnce(
  shape: Shape,
  tokens: number,
  device: 'cpu' | 'cuda',
  seed: number,
): Promise<StartUpTimes> {
  using layer = await MoELayer.create({ ...layerOptions(shape, device, 'bf16'), seed })
  using x = Tensor.randn([tokens, shape.hidden], { dtype: 'bf16', device, seed: seed + 1 })
  // All of it is there, not only queued: none of it is at the first forward's expense.
  await Promise.all([x, ...layer.weights.experts].map((tensor) => readPart(tensor, 0, 1)))
  const layerMs = performance.now()
  const times: number[] = []
  for (let i = 0; i < 2 + later; i++) {
    const began = performance.now()
    const { output } = await layer.forward(x)
    times.push(performance.now() - began)
    output.dispose()
  }
  const [firstMs = Number.NaN, secondMs = Number.NaN, ...rest] = times
  return { layerMs, firstMs, secondMs, laterMs: median(rest) }
}
