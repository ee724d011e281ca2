// The layers of checkpoints written by transformers give what transformers computed from them, and choose the experts it chose.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tensor } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import { onEachDevice } from '../../router-kernels/test/support/devices.js'
import { relativeError } from '../../router-kernels/test/support/random.js'
import { fromCheckpoint } from '../src/checkpoint/from-checkpoint.js'
import { SafetensorsFile } from '../src/checkpoint/safetensors.js'
import { fixtures } from './checkpoint/folders.js'

const families = ['mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'deepseek_v3', 'gpt_oss']

interface Recording {
  readonly shape: readonly number[]
  readonly bytes: ArrayBuffer
}

/** What transformers recorded for one layer, by name: input, output, gate.1 (weights), gate.2 (chosen experts). */
async function recorded(family: string, layer: number): Promise<(name: string) => Recording> {
  const file = await SafetensorsFile.open(join(fixtures, family, 'moe_io.safetensors'))
  const all = new Map<string, Recording>()
  for (const entry of file.header.tensors.values()) {
    const bytes = new Uint8Array(entry.end - entry.begin)
    await file.read(entry, 0, bytes)
    all.set(entry.name, { shape: entry.shape, bytes: bytes.buffer })
  }
  await file.close()
  return (name) => {
    const found = all.get(`model.layers.${layer}.mlp/${name}`)
    if (!found) throw new Error(`no recording of ${name}`)
    return found
  }
}

/** Rows of [expert, weight], ordered by expert: the order of the slots says nothing. */
function byExpert(
  ids: Iterable<number>,
  weights: Iterable<number>,
  topK: number,
): { experts: number[]; weights: number[] }[] {
  const pairs = [...ids].map((expert, i) => ({ expert, weight: [...weights][i] ?? Number.NaN }))
  return Array.from({ length: pairs.length / topK }, (_, t) => {
    const row = pairs.slice(t * topK, (t + 1) * topK).sort((a, b) => a.expert - b.expert)
    return { experts: row.map((p) => p.expert), weights: row.map((p) => p.weight) }
  })
}

onEachDevice('fixtures', (device) => {
  describe.each(families)('%s', (family) => {
    test.each([
      [0, 'f32', 1e-5],
      [1, 'f32', 1e-5],
      [0, 'bf16', 1e-2],
      [1, 'bf16', 1e-2],
    ] as const)('layer %i in %s within %d of transformers', async (layer, dtype, tolerance) => {
      const record = await recorded(family, layer)
      const { shape, bytes } = record('input')
      const expected = record('gate.2')
      const topK = expected.shape[1] ?? 0
      const moe = await fromCheckpoint(join(fixtures, family), { layer, device, dtype })
      const x = Tensor.from(new Float32Array(bytes), shape, { dtype, device })
      const { output, routing } = await moe.forward(x, { routing: true })
      try {
        if (!routing) throw new Error('forward gave no routing')
        const chosen = byExpert(await routing.expertIds.toArray(), await routing.weights.toFloat32Array(), topK)
        const wanted = byExpert(
          [...new BigInt64Array(expected.bytes)].map(Number),
          new Float32Array(record('gate.1').bytes),
          topK,
        )
        expect(chosen.map((row) => row.experts)).toEqual(wanted.map((row) => row.experts))
        const flat = (rows: { weights: number[] }[]) => Float32Array.from(rows.flatMap((row) => row.weights))
        expect(relativeError(flat(chosen), flat(wanted))).toBeLessThan(tolerance)
        expect(relativeError(await output.toFloat32Array(), new Float32Array(record('output').bytes))).toBeLessThan(
          tolerance,
        )
      } finally {
        for (const tensor of [x, output, routing?.expertIds, routing?.weights]) tensor?.dispose()
        moe.dispose()
      }
    })
  })
})

test('the default layer is the first with experts', async () => {
  const record = await recorded('mixtral', 0)
  const moe = await fromCheckpoint(join(fixtures, 'mixtral'), { device: 'cpu' })
  const { output } = await moe.forward(new Float32Array(record('input').bytes))
  expect(moe.config.experts.dtype).toBe('f32')
  expect(relativeError(await output.toFloat32Array(), new Float32Array(record('output').bytes))).toBeLessThan(1e-5)
  output.dispose()
  moe.dispose()
})

test('the fixtures are the ones that transformers wrote', () => {
  for (const family of families) {
    const io = JSON.parse(readFileSync(join(fixtures, family, 'moe_io.json'), 'utf8')) as { transformers: string }
    expect(io.transformers).toMatch(/^5\./)
  }
})
