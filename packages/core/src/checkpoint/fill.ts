/**
 * Fills a device tensor from a checkpoint in chunks: read → rearrange → write (which converts to the tensor's dtype), with the write
 * of one chunk under way while the next is read. Host memory is bounded by `limits` whatever the size of the checkpoint: one chunk
 * as read, two on their way to the device, and for a transposition a band.
 */
import type { Tensor } from '@nexus/native'
import type { Copy, DiskDType, Range, Target } from './plan.js'
import { type Bits, interleaveRows, transposeTile } from './rearrange.js'

/** Sizes in bytes, of elements as they are stored. */
export interface FillLimits {
  /** What is read, and written, at a time. */
  readonly chunkBytes: number
  /** Rows of a transposed matrix that are gathered at a time; a band costs one pass over its columns. */
  readonly bandBytes: number
}

/** 32 MiB hold the widest expert of GPT-OSS (2880 × 5760 in bf16), so that it is read front to back once. */
export const defaultLimits: FillLimits = { chunkBytes: 2 << 20, bandBytes: 32 << 20 }

const bytesOf = { f32: 4, bf16: 2, f16: 2 } as const

/** Reads under way at once where a tile's rows lie apart in the file. */
const parallelReads = 32

/** Called for each chunk that has been written. */
export type ChunkDone = (name: string, storedBytes: number) => void

/** Elements in the order of the target, from element `at` of it on; `bits` is reused for the chunk after the next. */
interface Chunk {
  readonly range: Range
  readonly at: number
  readonly bits: Bits
}

/** Buffers that live as long as one load. */
export class Filler {
  readonly #limits: FillLimits
  readonly #signal: AbortSignal | null
  readonly #buffers = new Map<string, ArrayBuffer>()
  #turn = 0

  constructor(limits: FillLimits, signal: AbortSignal | null) {
    this.#limits = limits
    this.#signal = signal
  }

  /** @throws CheckpointError when the file cannot be read to its end; the signal's reason when it aborts */
  async fill(tensor: Tensor, target: Target, done: ChunkDone): Promise<void> {
    let writing: Promise<void> = Promise.resolve()
    try {
      for (const copy of target.copies) {
        for await (const chunk of this.#chunks(copy)) {
          await writing
          this.#signal?.throwIfAborted()
          writing = write(tensor, chunk).then(() => done(chunk.range.stored.entry.name, chunk.bits.byteLength))
          // Awaited a chunk later; until then a failure must not count as unhandled.
          writing.catch(() => {})
        }
      }
    } finally {
      // Whatever happens, nobody frees the tensor or reuses a buffer under a write.
      await writing
    }
  }

  #chunks(copy: Copy): AsyncGenerator<Chunk> {
    if (copy.kind === 'copy') return this.#copy(copy.from, copy.at)
    return copy.kind === 'interleave' ? this.#interleave(copy) : this.#transpose(copy)
  }

  async *#copy(range: Range, at: number): AsyncGenerator<Chunk> {
    const most = Math.floor(this.#limits.chunkBytes / bytesOf[range.dtype])
    for (let done = 0; done < range.elements; done += most) {
      const bits = this.#outgoing(range.dtype, Math.min(most, range.elements - done))
      await this.#read(range, done, bits)
      yield { range, at: at + done, bits }
    }
  }

  async *#interleave({ gate, up, columns, at }: Extract<Copy, { kind: 'interleave' }>): AsyncGenerator<Chunk> {
    const rows = gate.elements / columns
    const most = Math.floor(this.#limits.chunkBytes / (2 * columns * bytesOf[gate.dtype]))
    if (most === 0) {
      // Rows longer than half a chunk: each is a run of its own.
      for (let row = 0; row < rows; row++) {
        const [first, elements] = [row * columns, columns]
        yield* this.#copy({ ...gate, first: gate.first + first, elements }, at + 2 * first)
        yield* this.#copy({ ...up, first: up.first + first, elements }, at + 2 * first + columns)
      }
      return
    }
    for (let row = 0; row < rows; row += most) {
      const elements = Math.min(most, rows - row) * columns
      const gates = this.#buffer('read', gate.dtype, elements)
      const ups = this.#buffer('read-up', gate.dtype, elements)
      await Promise.all([this.#read(gate, row * columns, gates), this.#read(up, row * columns, ups)])
      const bits = this.#outgoing(gate.dtype, 2 * elements)
      interleaveRows(gates, ups, columns, bits)
      yield { range: gate, at: at + 2 * row * columns, bits }
    }
  }

  /**
   * The result in bands of whole rows. A band's rows are columns of the source: one run of them, or two where gates and ups lie
   * apart. Runs are read in tiles of as many source rows as fit a chunk.
   */
  async *#transpose({ from, columns, blocks, at }: Extract<Copy, { kind: 'transpose' }>): AsyncGenerator<Chunk> {
    const width = from.elements / columns
    const runs = blocks ? 2 : 1
    const perRun = columns / runs
    const most = Math.max(1, Math.floor(this.#limits.bandBytes / (runs * width * bytesOf[from.dtype])))
    for (let c0 = 0; c0 < perRun; c0 += most) {
      const taken = Math.min(most, perRun - c0)
      const band = this.#buffer('band', from.dtype, runs * taken * width)
      for (let run = 0; run < runs; run++) {
        const place = { firstRow: run, rowStep: runs, width }
        await this.#transposeColumns(from, { columns, first: run * perRun + c0, taken }, band, place)
      }
      const bandAt = at + runs * c0 * width
      const perChunk = Math.floor(this.#limits.chunkBytes / bytesOf[from.dtype])
      for (let i = 0; i < band.length; i += perChunk) {
        const piece = band.subarray(i, i + perChunk)
        const bits = this.#outgoing(from.dtype, piece.length)
        bits.set(piece)
        yield { range: from, at: bandAt + i, bits }
      }
    }
  }

  /** Columns [first, first + taken) of the source into the band, tile by tile. */
  async #transposeColumns(
    from: Range,
    source: { readonly columns: number; readonly first: number; readonly taken: number },
    band: Bits,
    place: { readonly firstRow: number; readonly rowStep: number; readonly width: number },
  ): Promise<void> {
    const most = Math.floor(this.#limits.chunkBytes / bytesOf[from.dtype])
    const tileColumns = Math.min(source.taken, most)
    const tileRows = Math.floor(most / tileColumns)
    for (let c = 0; c < source.taken; c += tileColumns) {
      const columns = Math.min(tileColumns, source.taken - c)
      for (let row = 0; row < place.width; row += tileRows) {
        const rows = Math.min(tileRows, place.width - row)
        const bits = this.#buffer('read', from.dtype, rows * columns)
        await this.#readTile(from, row * source.columns + source.first + c, source.columns, { bits, rows, columns })
        const firstRow = place.firstRow + c * place.rowStep
        transposeTile({ bits, rows, columns }, band, { ...place, firstRow, firstColumn: row })
      }
    }
  }

  /** One read where the tile is contiguous in the file, else one for each of its rows. */
  async #readTile(from: Range, first: number, stride: number, tile: { bits: Bits; rows: number; columns: number }) {
    const { bits, rows, columns } = tile
    if (columns === stride) {
      await this.#read(from, first, bits)
      return
    }
    for (let row = 0; row < rows; row += parallelReads) {
      const reads = Array.from({ length: Math.min(parallelReads, rows - row) }, (_, i) =>
        this.#read(from, first + (row + i) * stride, bits.subarray((row + i) * columns, (row + i + 1) * columns)),
      )
      // All of them settle before an error leaves: a late one must not write into a buffer that serves another load.
      for (const result of await Promise.allSettled(reads)) if (result.status === 'rejected') throw result.reason
    }
  }

  async #read(range: Range, offset: number, target: Bits): Promise<void> {
    this.#signal?.throwIfAborted()
    const { file, entry } = range.stored
    const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength)
    await file.read(entry, (range.first + offset) * bytesOf[range.dtype], bytes)
  }

  /** Two buffers in turn: one may be on its way to the device while the other is filled. */
  #outgoing(dtype: DiskDType, elements: number): Bits {
    this.#turn = 1 - this.#turn
    return this.#buffer(`chunk-${this.#turn}`, dtype, elements)
  }

  /** The buffer of this use, grown when it is too small, never beyond what `limits` allow for it. */
  #buffer(use: string, dtype: DiskDType, elements: number): Bits {
    const bytes = elements * bytesOf[dtype]
    let buffer = this.#buffers.get(use)
    if (buffer === undefined || buffer.byteLength < bytes) {
      buffer = new ArrayBuffer(bytes)
      this.#buffers.set(use, buffer)
    }
    return dtype === 'f32' ? new Float32Array(buffer, 0, elements) : new Uint16Array(buffer, 0, elements)
  }
}

/** Raw bits; the tensor converts them where its dtype is another. */
function write(tensor: Tensor, { range, at, bits }: Chunk): Promise<void> {
  return tensor.write(bits, range.dtype === 'f32' ? { offset: at } : { offset: at, dtype: range.dtype })
}
