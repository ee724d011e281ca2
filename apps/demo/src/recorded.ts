/**
 * What transformers recorded of a checkpoint's MoE blocks (`moe_io.safetensors`): inputs, outputs and chosen experts. Only
 * the little that a recording needs of the safetensors format; `@nexus/core` reads the weights.
 */
import { readFile } from 'node:fs/promises'
import { basename } from 'node:path'

export interface RecordedBlock {
  /** The layer's number in the model. */
  readonly layer: number
  readonly tokens: number
  readonly width: number
  /** [tokens, width] */
  readonly input: Float32Array
  /** [tokens, width] */
  readonly output: Float32Array
  /** [tokens, topK] */
  readonly expertIds: Int32Array
  readonly topK: number
}

/** A recording that cannot be read; the message names the file. */
export class RecordingError extends Error {
  override readonly name = 'RecordingError'
}

interface Entry {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly data: DataView
}

/**
 * Reads a recording.
 * @returns its blocks by layer, or `null` when there is no such file
 * @throws RecordingError when the file is not what it should be
 */
export async function readRecording(path: string): Promise<RecordedBlock[] | null> {
  let file: Buffer
  try {
    file = await readFile(path)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null
    throw new RecordingError(`${path}: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
  const entries = parse(file, basename(path))
  const blocks: RecordedBlock[] = []
  for (const [name, input] of entries) {
    const module = /^(.*\.layers\.(\d+)\..*)\/input$/.exec(name)
    if (!module) continue
    const part = (key: string): Entry => {
      const entry = entries.get(`${module[1]}/${key}`)
      if (!entry) throw new RecordingError(`${basename(path)}: no tensor '${module[1]}/${key}' beside '${name}'`)
      return entry
    }
    const chosen = part('gate.2')
    const [tokens = 0, width = 0] = input.shape
    const output = floats(part('output'), name)
    if (output.length !== tokens * width || chosen.shape[0] !== tokens) {
      throw new RecordingError(
        `${basename(path)}: input, output and gate.2 of '${module[1]}' do not have the same tokens`,
      )
    }
    blocks.push({
      layer: Number(module[2]),
      tokens,
      width,
      input: floats(input, name),
      output,
      expertIds: integers(chosen, name),
      topK: chosen.shape[1] ?? 0,
    })
  }
  if (blocks.length === 0) throw new RecordingError(`${basename(path)}: no tensor named '….layers.N.…/input'`)
  return blocks.sort((a, b) => a.layer - b.layer)
}

function parse(file: Buffer, name: string): Map<string, Entry> {
  const bad = (problem: string) => new RecordingError(`${name}: ${problem}`)
  if (file.length < 8) throw bad(`${file.length} bytes are too few for a safetensors file`)
  const length = Number(file.readBigUInt64LE(0))
  if (length > file.length - 8) throw bad(`the header of ${length} bytes reaches past the end of the file`)
  let header: unknown
  try {
    header = JSON.parse(file.toString('utf8', 8, 8 + length))
  } catch (error) {
    throw new RecordingError(`${name}: the header is not JSON`, { cause: error })
  }
  if (typeof header !== 'object' || header === null) throw bad('the header is not an object')
  const body = file.subarray(8 + length)
  const entries = new Map<string, Entry>()
  for (const [key, value] of Object.entries(header as Record<string, unknown>)) {
    if (key === '__metadata__') continue
    const {
      dtype,
      shape,
      data_offsets: offsets,
    } = value as { dtype?: unknown; shape?: unknown; data_offsets?: unknown }
    const [begin, end] = Array.isArray(offsets) ? (offsets as unknown[]) : []
    const width = dtype === 'F32' ? 4 : dtype === 'I64' ? 8 : 0
    if (typeof dtype !== 'string' || width === 0) throw bad(`'${key}' is ${String(dtype)}; expected F32 or I64`)
    const sizes = Array.isArray(shape) ? shape.map(Number) : []
    const elements = sizes.reduce((product, n) => product * n, 1)
    if (
      typeof begin !== 'number' ||
      typeof end !== 'number' ||
      begin < 0 ||
      end > body.length ||
      end - begin !== elements * width
    ) {
      throw bad(
        `'${key}': offsets ${JSON.stringify(offsets)} do not fit its shape ${JSON.stringify(shape)} or the file`,
      )
    }
    entries.set(key, { dtype, shape: sizes, data: new DataView(body.buffer, body.byteOffset + begin, end - begin) })
  }
  return entries
}

function floats({ dtype, data }: Entry, name: string): Float32Array {
  if (dtype !== 'F32') throw new RecordingError(`'${name}': expected F32, got ${dtype}`)
  return Float32Array.from({ length: data.byteLength / 4 }, (_, i) => data.getFloat32(4 * i, true))
}

function integers({ dtype, data }: Entry, name: string): Int32Array {
  if (dtype !== 'I64') throw new RecordingError(`'${name}': expected I64, got ${dtype}`)
  return Int32Array.from({ length: data.byteLength / 8 }, (_, i) => Number(data.getBigInt64(8 * i, true)))
}
