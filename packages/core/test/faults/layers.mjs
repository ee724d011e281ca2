// The layer that fault tests use, and whether it still computes what it should.
import { MoELayer, SlicePartition, Tensor } from '@nexus/core'

/** Partitions that live, for `held` and what is built on it. */
export const partitions = () => ({ partitions: SlicePartition.live })

/** @param {string} device */
export function layersOn(device) {
  const shape = { inputDim: 32, hiddenDim: 24, numExperts: 8, topK: 2, device, seed: 5 }
  return {
    shape,
    input: (tokens) => Tensor.randn([tokens, 32], { device, dtype: device === 'cpu' ? 'f32' : 'bf16', seed: tokens }),

    /** The bits of a step of a layer that nothing schedules. */
    async expectedOf(x) {
      const plain = await MoELayer.create(shape)
      const { output } = await plain.forward(x)
      const expected = String(await output.toArray())
      for (const each of [output, plain]) each.dispose()
      return expected
    },

    /** One step and whether it has the expected bits. */
    right: (layer, x, expected) => same(layer.enqueue(x), expected),
    same,
  }
}

/** Whether an output has the expected bits. It is disposed of in any case: on CUDA reading takes host memory, which tests let run out. */
async function same(output, expected) {
  try {
    return String(await output.toArray()) === expected
  } finally {
    output.dispose()
  }
}
