/**
 * A checkpoint folder as `save_pretrained` leaves it: `config.json`, and the weights in one `model.safetensors` or in several
 * files that `model.safetensors.index.json` lists (`weight_map`: tensor → file). Files are opened when a tensor in them is
 * first asked for, so that one layer of a big model opens one or two of its files.
 */
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { failure, shown } from './failure.js'
import { openRegularFile, SafetensorsFile, type TensorEntry } from './safetensors.js'
import { decodeUtf8, isObject, parseStrictJson } from './strict-json.js'

const singleName = 'model.safetensors'
const indexName = 'model.safetensors.index.json'

/** A `config.json` of a real model has some kilobytes, the index of the largest some megabytes. */
const maxConfigBytes = 16_000_000
const maxIndexBytes = 100_000_000

/** One tensor and the open file that holds it. */
export interface StoredTensor {
  readonly file: SafetensorsFile
  readonly entry: TensorEntry
}

/** An open checkpoint. `close` it. */
export class CheckpointDirectory {
  readonly path: string
  /** `config.json` as it is. */
  readonly config: Readonly<Record<string, unknown>>
  readonly configPath: string
  /** Tensor name → file name. */
  readonly #files: ReadonlyMap<string, string>
  readonly #open = new Map<string, Promise<SafetensorsFile>>()
  /** The file that lists the tensors, for errors about one that is not there. */
  readonly listPath: string

  private constructor(
    path: string,
    config: Record<string, unknown>,
    files: ReadonlyMap<string, string>,
    listPath: string,
    single: SafetensorsFile | null,
  ) {
    this.path = path
    this.config = config
    this.configPath = join(path, 'config.json')
    this.#files = files
    this.listPath = listPath
    if (single !== null) this.#open.set(singleName, Promise.resolve(single))
  }

  /** @throws CheckpointError when `config.json` or the list of tensors is missing or malformed */
  static async open(path: string): Promise<CheckpointDirectory> {
    const config = await readJsonObject(join(path, 'config.json'), maxConfigBytes)
    // As transformers does: the single file wins where both are there.
    const single = await exists(join(path, singleName))
    const listPath = join(path, single ? singleName : indexName)
    if (single) {
      const file = await SafetensorsFile.open(listPath)
      const names = [...file.header.tensors.keys()]
      return new CheckpointDirectory(path, config, new Map(names.map((name) => [name, singleName])), listPath, file)
    }
    if (!(await exists(listPath))) {
      throw failure({ file: path }, `has neither ${singleName} nor ${indexName} (other formats are not read)`)
    }
    const index = await readJsonObject(listPath, maxIndexBytes)
    return new CheckpointDirectory(path, config, checkWeightMap(index.weight_map, listPath), listPath, null)
  }

  has(tensor: string): boolean {
    return this.#files.has(tensor)
  }

  names(): Iterable<string> {
    return this.#files.keys()
  }

  /** @throws CheckpointError when the tensor is not listed, its file is missing or malformed, or does not hold it */
  async find(tensor: string): Promise<StoredTensor> {
    const name = this.#files.get(tensor)
    if (name === undefined) throw failure({ file: this.listPath, tensor }, 'is missing')
    let opening = this.#open.get(name)
    if (opening === undefined) {
      opening = SafetensorsFile.open(join(this.path, name))
      this.#open.set(name, opening)
    }
    const file = await opening
    const entry = file.header.tensors.get(tensor)
    if (entry === undefined) throw failure({ file: file.path, tensor }, `is not in the file that ${indexName} names`)
    return { file, entry }
  }

  /** Closes every file that was opened. */
  async close(): Promise<void> {
    const files = await Promise.allSettled(this.#open.values())
    this.#open.clear()
    for (const file of files) if (file.status === 'fulfilled') await file.value.close()
  }
}

/** File names come from the checkpoint: only plain names are taken, so that an index cannot reach outside its folder. */
function checkWeightMap(map: unknown, file: string): Map<string, string> {
  if (!isObject(map)) throw failure({ file }, `weight_map is ${shown(map)}, not an object`)
  const files = new Map<string, string>()
  for (const [tensor, name] of Object.entries(map)) {
    if (typeof name !== 'string') throw failure({ file, tensor }, `its file is ${shown(name)}, not a string`)
    if (!/^[^/\\:\0]+\.safetensors$/.test(name)) {
      throw failure(
        { file, tensor },
        `its file ${shown(name)} is not the plain name of a .safetensors file in this folder`,
      )
    }
    files.set(tensor, name)
  }
  return files
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path)
    return true
  } catch {
    return false
  }
}

async function readJsonObject(path: string, maxBytes: number): Promise<Record<string, unknown>> {
  const handle = await openRegularFile(path)
  try {
    const { size } = await handle.stat()
    if (size > maxBytes) throw failure({ file: path }, `has ${size} bytes, over the limit of ${maxBytes}`)
    let value: unknown
    try {
      value = parseStrictJson(decodeUtf8(await handle.readFile()))
    } catch (cause) {
      const why = cause instanceof Error ? cause.message.slice(0, 200) : String(cause)
      throw failure({ file: path, cause }, `is not valid JSON in UTF-8 (${why})`)
    }
    if (!isObject(value)) throw failure({ file: path }, 'is not a JSON object')
    return value
  } finally {
    await handle.close()
  }
}
