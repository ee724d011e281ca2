/** Writes checkpoint folders for the tests: safetensors files from the format's text, independent of the reader. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'

export const fixtures = fileURLToPath(new URL('../fixtures/hf-dev', import.meta.url))

export interface WrittenTensor {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly data: Uint8Array
}

const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)

/** Bits of bf16 for values that bf16 holds exactly (small integers are such). */
export function bf16(values: readonly number[] | Float32Array): Uint8Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer)
  return new Uint8Array(Uint16Array.from(bits, (b) => b >>> 16).buffer)
}

export const f32 = (values: readonly number[] | Float32Array): Uint8Array =>
  new Uint8Array(Float32Array.from(values).buffer)

/** A tensor of bf16 or f32 with the given values, counted up from `first` if none are given. */
export function tensor(
  shape: readonly number[],
  values?: readonly number[] | Float32Array,
  dtype: 'BF16' | 'F32' = 'BF16',
) {
  const numbers = values ?? Float32Array.from({ length: product(shape) }, (_, i) => i)
  return { dtype, shape, data: dtype === 'BF16' ? bf16(numbers) : f32(numbers) }
}

/** The bytes of a file whose header is the given JSON text, padded as the reference implementation does. */
export function assemble(
  json: string | Uint8Array,
  data: Uint8Array = new Uint8Array(),
  headerBytes?: bigint,
): Uint8Array {
  const text = typeof json === 'string' ? new TextEncoder().encode(json) : json
  const file = new Uint8Array(8 + text.length + data.length)
  new DataView(file.buffer).setBigUint64(0, headerBytes ?? BigInt(text.length), true)
  file.set(text, 8)
  file.set(data, 8 + text.length)
  return file
}

export function safetensors(tensors: Readonly<Record<string, WrittenTensor>>): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  let at = 0
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [at, at + data.length] }
    at += data.length
  }
  let json = JSON.stringify(header)
  json += ' '.repeat((8 - (json.length % 8)) % 8)
  return assemble(json, Buffer.concat(Object.values(tensors).map(({ data }) => data)))
}

/** A folder that is removed when the file's tests are over. */
export function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'nexus-checkpoint-'))
  made.push(path)
  return path
}
const made: string[] = []
afterAll(() => {
  for (const path of made.splice(0)) rmSync(path, { recursive: true, force: true })
})

/** A folder with files of the given names and contents; an object is written as JSON. */
export function folderOf(files: Readonly<Record<string, Uint8Array | string | object>>): string {
  const path = folder()
  for (const [name, content] of Object.entries(files)) {
    const raw = typeof content === 'string' || content instanceof Uint8Array
    writeFileSync(join(path, name), raw ? content : JSON.stringify(content))
  }
  return path
}

export function checkpoint(config: object, tensors: Readonly<Record<string, WrittenTensor>>): string {
  return folderOf({ 'config.json': config, 'model.safetensors': safetensors(tensors) })
}
