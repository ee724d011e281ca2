/** The shape of a model's MoE layers, from its `config.json` alone: what is to be tuned before the weights are there. */
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { describe } from '@nexus/native'
import { ModelConfig } from '../checkpoint/config.js'
import { failure } from '../checkpoint/failure.js'
import { familyOf } from '../checkpoint/families.js'
import { decodeUtf8, isObject, parseStrictJson } from '../checkpoint/strict-json.js'
import type { TuneOptions } from './tune.js'

/** Options of `tune` that a model's configuration says. */
export type ModelShape = Required<
  Pick<TuneOptions, 'inputDim' | 'hiddenDim' | 'numExperts' | 'topK' | 'kind' | 'activation' | 'shared'>
>

const maxConfigBytes = 16_000_000

/**
 * @param path a Hugging Face `config.json`, or a folder that has one
 * @throws CheckpointError for a missing or malformed file; UnsupportedError for an unknown family
 */
export async function modelShape(path: string): Promise<ModelShape> {
  if (typeof path !== 'string' || path === '') {
    throw new TypeError(`path: expected a config.json or a folder that has one, got ${describe(path)}`)
  }
  const file = await fileOf(path)
  const config = ModelConfig.from(await readObject(file), file)
  const { inputDim, hiddenDim, activation, router, shared } = familyOf(config).spec(config)
  const { numExperts, topK } = router
  return { inputDim, hiddenDim, numExperts, topK, kind: 'gated', activation, shared }
}

async function fileOf(path: string): Promise<string> {
  try {
    return (await stat(path)).isDirectory() ? join(path, 'config.json') : path
  } catch (cause) {
    throw failure({ file: path, cause }, 'is neither a config.json nor a folder')
  }
}

async function readObject(file: string): Promise<Record<string, unknown>> {
  let value: unknown
  try {
    const bytes = await readFile(file)
    if (bytes.length > maxConfigBytes)
      throw new RangeError(`${bytes.length} bytes, over the limit of ${maxConfigBytes}`)
    value = parseStrictJson(decodeUtf8(bytes))
  } catch (cause) {
    const why = cause instanceof Error ? cause.message.slice(0, 200) : String(cause)
    throw failure({ file, cause }, `cannot be read as JSON (${why})`)
  }
  if (!isObject(value)) throw failure({ file }, 'is not a JSON object')
  return value
}
