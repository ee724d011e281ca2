/** The layers of one shape on the CPU, f32 and bf16 of the same weights, and the files from which the peers read them. */
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { GroupedExperts, MoELayer, Router, Tensor } from '@nexus/core'
import type { Shape } from '../shapes.js'
import type { PeerServer } from './peer-server.js'

const device = 'cpu'

export const writeFloats = (path: string, values: Float32Array): void =>
  writeFileSync(path, new Uint8Array(values.buffer, values.byteOffset, values.byteLength))

export interface CpuLayers {
  readonly shape: Shape
  readonly f32: MoELayer
  readonly bf16: MoELayer
  /** The parts of the f32 layer by hand, for the products alone. */
  readonly router: Router
  readonly experts: GroupedExperts
  dispose(): void
}

/** @param peers given the weights by way of files in `folder`, which are gone when this resolves */
export async function cpuLayers(
  shape: Shape,
  seed: number,
  folder: string,
  peers: PeerServer | null,
): Promise<CpuLayers> {
  const { hidden, inter, experts: numExperts, topK } = shape
  const owned: { dispose(): void }[] = []
  const own = <T extends { dispose(): void }>(thing: T): T => {
    owned.push(thing)
    return thing
  }
  const dispose = () => {
    for (const thing of owned.splice(0).reverse()) thing.dispose()
  }
  try {
    const w1Shape = [numExperts, 2 * inter, hidden]
    const w2Shape = [numExperts, hidden, inter]
    const w1 = own(Tensor.randn(w1Shape, { dtype: 'f32', device, seed: seed + 1, scale: hidden ** -0.5 }))
    const w2 = own(Tensor.randn(w2Shape, { dtype: 'f32', device, seed: seed + 2, scale: inter ** -0.5 }))
    const narrow = [own(await w1.to({ dtype: 'bf16' })), own(await w2.to({ dtype: 'bf16' }))]
    const common = {
      inputDim: hidden,
      hiddenDim: inter,
      numExperts,
      topK,
      router: { normalize: 'sum' },
      device,
    } as const
    const f32 = own(await MoELayer.create({ ...common, dtype: 'f32', weights: { experts: [w1, w2] } }))
    const bf16 = own(await MoELayer.create({ ...common, dtype: 'bf16', weights: { experts: narrow } }))
    const router = own(new Router({ numExperts, topK, normalize: 'sum', device }))
    const spec = { kind: 'gated', numExperts, inputDim: hidden, hiddenDim: inter, outputDim: hidden } as const
    const experts = own(new GroupedExperts({ ...spec, dtype: 'f32', device, weights: [w1, w2] }))
    if (peers !== null) {
      const files = { w1: join(folder, 'w1.f32'), w2: join(folder, 'w2.f32') }
      try {
        writeFloats(files.w1, await w1.toFloat32Array())
        writeFloats(files.w2, await w2.toFloat32Array())
        await peers.ask('weights', { ...files, hidden, inter, experts: numExperts, topK })
      } finally {
        for (const file of Object.values(files)) rmSync(file, { force: true })
      }
    }
    return { shape, f32, bf16, router, experts, dispose }
  } catch (error) {
    dispose()
    throw error
  }
}
