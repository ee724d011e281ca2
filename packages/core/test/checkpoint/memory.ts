/**
 * Loads a checkpoint of about 1 GiB and measures the host memory that loading takes beyond the weights themselves. vitest gives each test
 * file a process of its own (pool 'forks'), so its peak is this load's peak.
 */
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { isMainThread } from 'node:worker_threads'
import { Tensor } from '@nexus/native'
import { expect } from 'vitest'
import { type LoadProgress, readLayer } from '../../src/checkpoint/read-layer.js'
import { folder } from './folders.js'

const MiB = 1 << 20

export interface BigCheckpoint {
  readonly config: object
  /** Files, each with its tensors: name → shape. All are bf16. */
  readonly files: readonly Readonly<Record<string, readonly number[]>>[]
}

/** Writes the files sparsely: zeros, but for one bf16 1.0 as the last element of each tensor. */
function write({ config, files }: BigCheckpoint): string {
  const path = folder()
  const map: Record<string, string> = {}
  writeFileSync(join(path, 'config.json'), JSON.stringify(config))
  for (const [i, tensors] of files.entries()) {
    const name = `model-${i + 1}-of-${files.length}.safetensors`
    const header: Record<string, unknown> = {}
    let end = 0
    const ends: number[] = []
    for (const [tensor, shape] of Object.entries(tensors)) {
      const begin = end
      end += 2 * shape.reduce((a, b) => a * b, 1)
      header[tensor] = { dtype: 'BF16', shape, data_offsets: [begin, end] }
      map[tensor] = name
      ends.push(end)
    }
    const json = Buffer.from(JSON.stringify(header))
    const length = Buffer.alloc(8)
    length.writeBigUInt64LE(BigInt(json.length))
    const file = openSync(join(path, name), 'w')
    writeSync(file, Buffer.concat([length, json]))
    ftruncateSync(file, 8 + json.length + end)
    for (const at of ends) writeSync(file, Buffer.from([0x80, 0x3f]), 0, 2, 8 + json.length + at - 2)
    closeSync(file)
  }
  writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }))
  return path
}

/** @returns MiB of host memory beyond the weights, at the peak */
export async function loadMeasured(checkpoint: BigCheckpoint): Promise<number> {
  // In a thread the peak would be that of all test files together.
  expect(isMainThread).toBe(true)
  const path = write(checkpoint)
  const steps: LoadProgress[] = []
  const before = process.memoryUsage().rss
  const started = performance.now()
  const { weights } = await readLayer(path, {
    device: 'cpu',
    dtype: 'bf16',
    onProgress: (step) => {
      steps.push(step)
    },
  })
  const seconds = (performance.now() - started) / 1000
  const peak = process.resourceUsage().maxRSS * 1024
  const tensors = Object.values(weights ?? {})
    .flat()
    .filter((w): w is Tensor => w instanceof Tensor)
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0)
  try {
    expect(bytes).toBeGreaterThan(1024 * MiB)
    expect(steps.at(-1)?.bytesDone).toBe(steps.at(-1)?.bytesTotal)
    // The weights are in this process: nothing was left out.
    expect(process.memoryUsage().rss - before).toBeGreaterThan(0.9 * bytes)
    expect(seconds).toBeLessThan(60)
    for (const experts of weights?.experts ?? []) {
      if (!(experts instanceof Tensor)) throw new Error('expected tensors')
      expect((await experts.toArray()).at(-1)).toBe(0x3f80)
    }
    return (peak - before - bytes) / MiB
  } finally {
    for (const tensor of tensors) tensor.dispose()
  }
}
