/**
 * The safetensors container, read strictly from its specification:
 *
 *     8 bytes   N, little-endian u64: size of the header, at most 100 000 000
 *     N bytes   UTF-8 JSON object, starts with '{', may be padded with spaces at its end:
 *               { name: { dtype, shape, data_offsets: [begin, end] }, ..., "__metadata__": { string: string } }
 *     the rest  the byte buffer that the offsets count from; every byte of it belongs to exactly one tensor
 *
 * A checkpoint comes from strangers, so nothing in the header is believed before it is checked against the size of the
 * file: nothing is allocated for a size that the file does not have, and only the header and the ranges that are asked
 * for are read. Whatever is wrong is a `CheckpointError`. https://github.com/huggingface/safetensors#format
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { failure, shown } from './failure.js'
import { decodeUtf8, isObject, parseStrictJson } from './strict-json.js'

/** The largest header that the reference implementation takes. */
export const maxHeaderBytes = 100_000_000

/** Bits of one element. F4 and F6 are packed. A dtype that is not here has an unknown size: refused once it is needed. */
const dtypeBits: Readonly<Record<string, number>> = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
}

/** One tensor of a header. */
export interface TensorEntry {
  readonly name: string
  /** As the file spells it: `BF16`, `F32`, ... */
  readonly dtype: string
  readonly shape: readonly number[]
  /** First byte of the tensor, counted from the start of the byte buffer. */
  readonly begin: number
  /** One past its last byte. */
  readonly end: number
}

export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorEntry>
  readonly metadata: ReadonlyMap<string, string>
}

/**
 * Parses and checks a header.
 * @param json the header's bytes, without the eight that give its length
 * @param bufferBytes size of the byte buffer behind it
 * @param file named in errors
 * @throws CheckpointError for anything that the format does not allow
 */
export function parseHeader(json: Uint8Array, bufferBytes: number, file: string): SafetensorsHeader {
  if (json[0] !== 0x7b) throw failure({ file }, `the header does not start with '{'`)
  let root: unknown
  try {
    root = parseStrictJson(decodeUtf8(json), { integersOnly: true })
  } catch (cause) {
    throw failure({ file, cause }, `the header is not valid JSON in UTF-8 (${message(cause)})`)
  }
  if (!isObject(root)) throw failure({ file }, 'the header is not a JSON object')
  const tensors = new Map<string, TensorEntry>()
  let metadata = new Map<string, string>()
  for (const [name, value] of Object.entries(root)) {
    if (name === '__metadata__') metadata = checkMetadata(value, file)
    else tensors.set(name, checkEntry(name, value, file))
  }
  checkCover(tensors, bufferBytes, file)
  return { tensors, metadata }
}

function checkMetadata(value: unknown, file: string): Map<string, string> {
  if (!isObject(value)) throw failure({ file }, '__metadata__ is not an object')
  const entries = new Map<string, string>()
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') throw failure({ file }, `__metadata__['${key.slice(0, 80)}'] is not a string`)
    entries.set(key, text)
  }
  return entries
}

function checkEntry(name: string, value: unknown, file: string): TensorEntry {
  const bad = (problem: string) => failure({ file, tensor: name }, problem)
  if (!isObject(value)) throw bad(`the entry is ${shown(value)}, not an object`)
  for (const key of Object.keys(value)) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') throw bad(`unknown field '${key.slice(0, 80)}'`)
  }
  const { dtype, shape, data_offsets: offsets } = value
  if (typeof dtype !== 'string') throw bad(`dtype is ${shown(dtype)}, not a string`)
  if (!isSizes(shape)) throw bad(`shape is ${shown(shape)}, not an array of non-negative integers`)
  if (!isSizes(offsets)) throw bad(`data_offsets is ${shown(offsets)}, not an array of non-negative integers`)
  const [begin, end] = offsets
  if (begin === undefined || end === undefined || offsets.length !== 2) {
    throw bad(`data_offsets has ${offsets.length} numbers, not 2`)
  }
  if (end < begin) throw bad(`data_offsets end before they begin: ${shown(offsets)}`)
  const bits = Object.hasOwn(dtypeBits, dtype) ? dtypeBits[dtype] : undefined
  let elements = 1
  for (const size of shape) elements *= size
  if (!Number.isSafeInteger(elements * (bits ?? 1))) throw bad(`shape ${shown(shape)} is too large`)
  if (bits !== undefined && elements * bits !== (end - begin) * 8) {
    throw bad(`${dtype} of shape ${shown(shape)} takes ${(elements * bits) / 8} bytes, its offsets hold ${end - begin}`)
  }
  return { name, dtype, shape, begin, end }
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((v) => Number.isSafeInteger(v) && v >= 0)
}

/** In the order of their offsets the tensors must tile the byte buffer: no overlap, no hole, nothing outside. */
function checkCover(tensors: ReadonlyMap<string, TensorEntry>, bufferBytes: number, file: string): void {
  const ordered = [...tensors.values()].sort((a, b) => a.begin - b.begin || a.end - b.end)
  let covered = 0
  for (const { name: tensor, begin, end } of ordered) {
    if (end > bufferBytes) {
      throw failure(
        { file, tensor },
        `ends at byte ${end} of a buffer of ${bufferBytes}: a truncated file or wrong offsets`,
      )
    }
    if (begin < covered) throw failure({ file, tensor }, `starts at byte ${begin}, inside another tensor`)
    if (begin > covered)
      throw failure({ file, tensor }, `starts at byte ${begin}: no tensor holds the bytes from ${covered} on`)
    covered = end
  }
  if (covered !== bufferBytes) {
    throw failure({ file }, `the tensors hold ${covered} bytes, the file has ${bufferBytes} behind its header`)
  }
}

/** An open file with a checked header. `close` it. */
export class SafetensorsFile {
  readonly path: string
  readonly header: SafetensorsHeader
  readonly #handle: FileHandle
  readonly #bufferStart: number

  private constructor(path: string, handle: FileHandle, header: SafetensorsHeader, bufferStart: number) {
    this.path = path
    this.header = header
    this.#handle = handle
    this.#bufferStart = bufferStart
  }

  /** Opens `path`, reads its header and nothing else. @throws CheckpointError if it cannot be opened or is malformed */
  static async open(path: string): Promise<SafetensorsFile> {
    const handle = await openRegularFile(path)
    try {
      const { size } = await handle.stat()
      if (size < 8) throw failure({ file: path }, `a file of ${size} bytes has no room for a header`)
      const prefix = new Uint8Array(8)
      await readFully(handle, prefix, 0, { file: path })
      const length = new DataView(prefix.buffer).getBigUint64(0, true)
      if (length > BigInt(maxHeaderBytes)) {
        throw failure(
          { file: path },
          `a header of ${length} bytes is over the limit of ${maxHeaderBytes}: not a safetensors file?`,
        )
      }
      const headerBytes = Number(length)
      if (headerBytes > size - 8) {
        throw failure(
          { file: path },
          `the header should have ${headerBytes} bytes, the file has ${size - 8} left: truncated?`,
        )
      }
      const json = new Uint8Array(headerBytes)
      await readFully(handle, json, 8, { file: path })
      const header = parseHeader(json, size - 8 - headerBytes, path)
      return new SafetensorsFile(path, handle, header, 8 + headerBytes)
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** Fills `target` from byte `offset` of the tensor on. @throws CheckpointError when the file ends early or cannot be read */
  async read(entry: TensorEntry, offset: number, target: Uint8Array): Promise<void> {
    if (offset < 0 || offset + target.byteLength > entry.end - entry.begin) {
      throw new RangeError(`read of ${target.byteLength} bytes at ${offset} is outside tensor '${entry.name}'`)
    }
    const place = { file: this.path, tensor: entry.name }
    await readFully(this.#handle, target, this.#bufferStart + entry.begin + offset, place)
  }

  async close(): Promise<void> {
    await this.#handle.close()
  }
}

/** Opens a file for reading; a folder, a pipe or a device (which could block for ever) is refused before it is read. */
export async function openRegularFile(path: string): Promise<FileHandle> {
  let handle: FileHandle
  try {
    // O_NONBLOCK: opening a pipe that nobody writes to returns at once, so that it can be refused.
    handle = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  } catch (cause) {
    throw failure({ file: path, cause }, `cannot be opened (${message(cause)})`)
  }
  try {
    if (!(await handle.stat()).isFile()) throw failure({ file: path }, 'is not a regular file')
    return handle
  } catch (error) {
    await handle.close()
    throw error
  }
}

async function readFully(
  handle: FileHandle,
  target: Uint8Array,
  position: number,
  place: { file: string; tensor?: string },
): Promise<void> {
  for (let done = 0; done < target.byteLength; ) {
    let bytesRead: number
    try {
      ;({ bytesRead } = await handle.read(target, done, target.byteLength - done, position + done))
    } catch (cause) {
      throw failure({ ...place, cause }, `cannot be read (${message(cause)})`)
    }
    if (bytesRead === 0)
      throw failure(place, `the file ends at byte ${position + done}: it was truncated while being read`)
    done += bytesRead
  }
}

function message(cause: unknown): string {
  return cause instanceof Error ? cause.message.slice(0, 200) : String(cause)
}
