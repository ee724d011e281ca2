/** A layer of random weights, in parts, and what its output is when nothing is divided. */
import { type DeviceName, type Stream, Tensor } from '@nexus/native'
import { combine, GroupedExperts, Router } from '@nexus/router-kernels'

export interface LayerShape {
  readonly numExperts: number
  readonly topK: number
  readonly inputDim: number
  readonly hiddenDim: number
  readonly seed?: number
}

export interface LayerParts {
  readonly router: Router
  readonly experts: GroupedExperts
  readonly dtype: 'f32' | 'bf16'
  dispose(): void
}

export function makeLayer(
  device: DeviceName,
  { numExperts, topK, inputDim, hiddenDim, seed = 0 }: LayerShape,
): LayerParts {
  const dtype = device === 'cpu' ? 'f32' : 'bf16'
  const weight = Tensor.randn([numExperts, inputDim], { dtype, device, seed: seed + 1, scale: inputDim ** -0.5 })
  const router = new Router({ numExperts, topK, weight, device })
  const shape = { numExperts, inputDim, hiddenDim, outputDim: inputDim, dtype, device } as const
  const experts = GroupedExperts.random({ kind: 'gated', ...shape, seed })
  const dispose = () => {
    for (const part of [router, experts, weight]) part.dispose()
  }
  return { router, experts, dtype, dispose }
}

/** One step on a stream, undivided: all experts in one launch. The caller disposes of the output. */
export function wholeStep(
  { router, experts }: Pick<LayerParts, 'router' | 'experts'>,
  x: Tensor,
  stream?: Stream,
): Tensor {
  const on = stream === undefined ? {} : { stream }
  using routed = router.route(x, null, on)
  using rows = experts.forward(x, routed, on)
  return combine(rows, routed, on)
}
