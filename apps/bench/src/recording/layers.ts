/** The layers that traces are recorded from. */
import { readFileSync } from 'node:fs'
import { join, relative, sep } from 'node:path'
import { type DeviceSpec, MoELayer, Tensor } from '@nexus/core'
import { root } from '../paths.js'
import { uniforms } from '../random.js'
import { learnRouter } from './clusters.js'
import { type Digits, pixelScale, pixels, turned } from './digits.js'
import type { Batch } from './drift.js'

/** Checkpoints that come with the project, by the names of their families. */
export const fixtures = ['mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'deepseek_v3', 'gpt_oss'] as const
const fixturesFolder = 'packages/core/test/fixtures/hf-dev'

/** Inner width of the experts behind the learned router; what they compute does not matter to where tokens go. */
const hiddenDim = 16

/** A layer, and how images become its tokens. */
export interface RecordedLayer {
  readonly layer: MoELayer
  /** What it is, in words. */
  readonly what: string
  /** [tokens, inputDim] */
  input(batch: Batch): Float32Array
}

export interface LayerChoice {
  /** 'digits' for a layer whose router has learned; else a checkpoint: the name of a fixture, or a folder. */
  readonly source: string
  /** Of 'digits' only. */
  readonly experts: number
  /** Of 'digits' only. */
  readonly topK: number
}

const isFixture = (source: string) => (fixtures as readonly string[]).includes(source)

/** The part of a trace's name that says which layer it is of. */
export const layerName = (source: string): string =>
  source === 'digits' || isFixture(source) ? source : (source.split(/[\\/]/).filter(Boolean).at(-1) ?? source)

/** A checkpoint as files may name it: relative to the repository, or only the folder's name. */
function publicName(folder: string): string {
  const path = relative(root, folder)
  return path.startsWith('..') || path === folder ? layerName(folder) : path.split(sep).join('/')
}

export async function makeLayer(
  choice: LayerChoice,
  digits: Digits,
  device: DeviceSpec,
  seed: number,
): Promise<RecordedLayer> {
  const { source, experts, topK } = choice
  if (source === 'digits') {
    const router = Tensor.from(learnRouter(digits.learn, experts, seed), [experts, pixels], { dtype: 'f32', device })
    const dtype = router.device === 'cpu' ? 'f32' : 'bf16'
    const weights = [
      [experts, 2 * hiddenDim, pixels],
      [experts, pixels, hiddenDim],
    ].map((shape, i) => Tensor.randn(shape, { dtype, device, seed: seed + i, scale: (shape[2] ?? 1) ** -0.5 }))
    const layer = await MoELayer.create({
      inputDim: pixels,
      hiddenDim,
      numExperts: experts,
      topK,
      device,
      dtype,
      weights: { router, experts: weights },
      adoptWeights: true,
    })
    const what =
      `MoELayer, ${experts} experts of ${pixels} × ${hiddenDim}, top ${topK}, softmax; the router has learned (spherical k-means of the first half of ` +
      'the images, a cluster for each expert), the experts are random'
    return { layer, what, input: inputs(digits, pixels, seed) }
  }
  const folder = isFixture(source) ? join(root, fixturesFolder, source) : source
  const layer = await MoELayer.fromCheckpoint(folder, { device })
  try {
    const { experts: mlp, rule } = layer.config
    const { model_type: family } = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as {
      model_type?: string
    }
    const what =
      `MoELayer of the checkpoint ${publicName(folder)} (${family ?? 'no model_type'}), its first layer with experts: ${rule.numExperts} of ` +
      `${mlp.inputDim} × ${mlp.hiddenDim}, top ${rule.topK}` +
      (isFixture(source) ? '; its weights are those of an untrained model' : '')
    return { layer, what, input: inputs(digits, mlp.inputDim, seed) }
  } catch (error) {
    layer.dispose()
    throw error
  }
}

/** Images as rows of a layer's input: as they are where it has 64 columns, else by a random projection of signs, which is exact too. */
function inputs({ route }: Digits, width: number, seed: number): (batch: Batch) => Float32Array {
  const random = uniforms(seed ^ 0x9d2c5680)
  const signs = width === pixels ? null : Int8Array.from({ length: width * pixels }, () => (random() < 0.5 ? -1 : 1))
  // 8: the length of 64 signs.
  const scale = signs === null ? 1 / pixelScale : 1 / (8 * pixelScale)
  const projected = (turn: boolean) => {
    const rows = new Float32Array(route.count * width)
    for (let i = 0; i < route.count; i++) {
      for (let c = 0; c < width; c++) {
        let sum = 0
        for (let p = signs === null ? c : 0; p < (signs === null ? c + 1 : pixels); p++) {
          const value = route.values[i * pixels + (turn ? (turned[p] ?? 0) : p)] ?? 0
          sum += signs === null ? value : value * (signs[c * pixels + p] ?? 0)
        }
        rows[i * width + c] = sum * scale
      }
    }
    return rows
  }
  const made = new Map<boolean, Float32Array>()
  return (batch) => {
    const rows = made.get(batch.turned) ?? projected(batch.turned)
    made.set(batch.turned, rows)
    const x = new Float32Array(batch.images.length * width)
    for (const [t, image] of batch.images.entries()) x.set(rows.subarray(image * width, (image + 1) * width), t * width)
    return x
  }
}
