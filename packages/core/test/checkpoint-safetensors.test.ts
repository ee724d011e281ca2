// The safetensors reader: what the format allows is read, everything else is a CheckpointError.
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { CheckpointError } from '@nexus/native'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseHeader, SafetensorsFile } from '../src/checkpoint/safetensors.js'
import { assemble, fixtures, folder, folderOf, safetensors, tensor } from './checkpoint/folders.js'

const encode = (text: string) => new TextEncoder().encode(text)
const parse = (json: string | Uint8Array, bufferBytes = 0) =>
  parseHeader(typeof json === 'string' ? encode(json) : json, bufferBytes, 'model.safetensors')
const entry = (dtype: unknown, shape: unknown, offsets: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: offsets })

/** The CheckpointError of a file with these bytes. */
async function rejection(bytes: Uint8Array): Promise<CheckpointError> {
  const path = join(folderOf({ 'model.safetensors': bytes }), 'model.safetensors')
  try {
    await (await SafetensorsFile.open(path)).close()
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError)
    const failure = error as CheckpointError
    expect(failure.file).toBe(path)
    expect(failure.code).toBe('ERR_NEXUS_CHECKPOINT')
    return failure
  }
  throw new Error('the file was accepted')
}

describe('a valid file', () => {
  test('is read: names, shapes, metadata, and the bytes of each tensor alone', async () => {
    const bytes = safetensors({ a: tensor([2, 3]), empty: tensor([0, 7]), scalar: tensor([], [5], 'F32') })
    const file = await SafetensorsFile.open(join(folderOf({ m: bytes }), 'm'))
    expect([...file.header.tensors.keys()]).toEqual(['a', 'empty', 'scalar'])
    expect(file.header.metadata.get('format')).toBe('pt')
    const scalar = file.header.tensors.get('scalar')
    if (!scalar) throw new Error('no scalar')
    expect(scalar).toMatchObject({ dtype: 'F32', shape: [], begin: 12, end: 16 })
    const four = new Uint8Array(4)
    await file.read(scalar, 0, four)
    expect(new Float32Array(four.buffer)[0]).toBe(5)
    await expect(file.read(scalar, 1, four)).rejects.toThrow(RangeError)
    await file.close()
  })

  test.each([
    ['no tensors', '{}', 0],
    ['padding of spaces', '{}    ', 0],
    ['a name with escapes', `{"a\\u0062":${entry('U8', [1], [0, 1])}}`, 1],
    ['__proto__ as a name', `{"__proto__":${entry('U8', [1], [0, 1])}}`, 1],
    ['tensors out of order', `{"b":${entry('U8', [2], [1, 3])},"a":${entry('U8', [1], [0, 1])}}`, 3],
    ['a dtype of tomorrow, as long as nobody needs it', `{"a":${entry('X1', [3], [0, 9])}}`, 9],
    ['packed elements', `{"a":${entry('F4', [3, 2], [0, 3])}}`, 3],
  ])('%s', (_, json, bytes) => {
    expect(() => parse(json, bytes)).not.toThrow()
  })

  test('written by transformers: all fixtures', async () => {
    for (const family of ['mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'deepseek_v3', 'gpt_oss']) {
      const file = await SafetensorsFile.open(join(fixtures, family, 'model.safetensors'))
      expect(file.header.tensors.size).toBeGreaterThan(10)
      await file.close()
    }
  })
})

describe('a malformed file is a CheckpointError', () => {
  const good = safetensors({ a: tensor([2, 3]), b: tensor([4], undefined, 'F32') })

  test.each([
    ['empty', new Uint8Array(), /0 bytes/],
    ['shorter than its length field', good.subarray(0, 7), /7 bytes/],
    ['cut in its header', good.subarray(0, 20), /truncated/],
    ['cut in its last tensor', good.subarray(0, -1), /ends at byte/],
    ['longer than its tensors', new Uint8Array([...good, 0]), /behind its header/],
    ['a header length over the limit', assemble('{}', undefined, 100_000_001n), /limit/],
    ['a header length of 2^64 - 1', assemble('{}', undefined, 2n ** 64n - 1n), /limit/],
    ['a header length beyond the file', assemble('{}', undefined, 99_999_999n), /truncated/],
    ['a header of no bytes', assemble(''), /does not start/],
  ])('%s', async (_, bytes, message) => {
    expect((await rejection(bytes)).message).toMatch(message)
  })

  test.each([
    ['not JSON', '{"a"', 0],
    ['an array', '[]', 0],
    ['a space first', ' {}', 0],
    ['a byte-order mark first', '\ufeff{}', 0],
    ['something behind the object', '{}x', 0],
    ['padding of zeros', '{}\0\0', 0],
    ['a key twice', `{"a":${entry('U8', [1], [0, 1])},"a":${entry('U8', [1], [0, 1])}}`, 1],
    ['a key twice, once escaped', `{"a":${entry('U8', [1], [0, 1])},"\\u0061":${entry('U8', [1], [0, 1])}}`, 1],
    ['a field twice', '{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1],
    ['metadata twice', '{"__metadata__":{},"__metadata__":{}}', 0],
    ['metadata that is no object', '{"__metadata__":[]}', 0],
    ['metadata that is no string', '{"__metadata__":{"a":1}}', 0],
  ])('header: %s', (_, json, bytes) => {
    expect(() => parse(json, bytes)).toThrow(CheckpointError)
  })

  test('header: bytes that are not UTF-8', () => {
    expect(() => parse(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]))).toThrow(/UTF-8/)
  })

  test('header: nesting without end', () => {
    expect(() => parse(`{"a":${'['.repeat(1_000_000)}`)).toThrow(CheckpointError)
    expect(() => parse(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`)).toThrow(CheckpointError)
  })

  test.each([
    ['null', 'null'],
    ['a string', '"F32"'],
    ['an array', '[]'],
    ['without dtype', '{"shape":[1],"data_offsets":[0,4]}'],
    ['without shape', '{"dtype":"F32","data_offsets":[0,4]}'],
    ['without offsets', '{"dtype":"F32","shape":[1]}'],
    ['with a field that the format does not know', '{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":0}'],
    ['dtype a number', entry(7, [1], [0, 4])],
    ['shape a number', entry('F32', 1, [0, 4])],
    ['a negative size', entry('F32', [-1], [0, 4])],
    ['a fractional size', entry('F32', [1.5], [0, 4])],
    ['a size with a point', '{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}'],
    ['a size with an exponent', '{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}'],
    ['minus zero', '{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}'],
    ['a size of 2^53', entry('F32', [2 ** 53], [0, 4])],
    ['sizes whose product overflows', entry('F32', [2 ** 30, 2 ** 30], [0, 4])],
    ['sizes whose product overflows before a zero', entry('F32', [2 ** 52, 2 ** 52, 2 ** 52, 0].slice(0, 3), [0, 4])],
    ['a string as size', entry('F32', ['1'], [0, 4])],
    ['one offset', entry('F32', [1], [4])],
    ['three offsets', entry('F32', [1], [0, 4, 4])],
    ['offsets backwards', entry('F32', [1], [4, 0])],
    ['a negative offset', entry('F32', [1], [-4, 0])],
    ['a fractional offset', entry('F32', [1], [0, 4.5])],
    ['an offset of 2^63', '{"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775808]}'],
    ['fewer bytes than its shape', entry('F32', [2], [0, 4])],
    ['more bytes than its shape', entry('BF16', [1], [0, 4])],
    ['half a byte', entry('F4', [7], [0, 4])],
    ['outside the file', entry('F32', [2], [0, 8])],
    ['an unknown dtype outside the file', entry('X1', [2], [0, 8])],
  ])('an entry: %s', (_, json) => {
    const attempt = () => parse(`{"weight":${json}}`, 4)
    expect(attempt).toThrow(CheckpointError)
    try {
      attempt()
    } catch (error) {
      // Whatever the JSON grammar still allows is blamed on the tensor.
      if (!/valid JSON/.test((error as Error).message)) expect((error as CheckpointError).tensor).toBe('weight')
    }
  })

  test('tensors that overlap', () => {
    const json = `{"a":${entry('U8', [3], [0, 3])},"b":${entry('U8', [2], [2, 4])}}`
    expect(() => parse(json, 4)).toThrow(/'b'.*inside another/)
  })

  test('two tensors in the same bytes', () => {
    expect(() => parse(`{"a":${entry('U8', [3], [0, 3])},"b":${entry('U8', [3], [0, 3])}}`, 3)).toThrow(
      /inside another/,
    )
  })

  test('bytes that belong to no tensor: before, between and behind', () => {
    expect(() => parse(`{"a":${entry('U8', [3], [1, 4])}}`, 4)).toThrow(/no tensor holds/)
    expect(() => parse(`{"a":${entry('U8', [1], [0, 1])},"b":${entry('U8', [2], [2, 4])}}`, 4)).toThrow(
      /no tensor holds/,
    )
    expect(() => parse(`{"a":${entry('U8', [3], [0, 3])}}`, 4)).toThrow(/behind its header/)
  })

  test('a folder, a pipe and a file that is not there', async () => {
    const path = folder()
    const pipe = join(path, 'pipe')
    execFileSync('mkfifo', [pipe])
    await expect(SafetensorsFile.open(path)).rejects.toThrow(CheckpointError)
    await expect(SafetensorsFile.open(pipe)).rejects.toThrow(/not a regular file/)
    await expect(SafetensorsFile.open(join(path, 'nothing'))).rejects.toThrow(/cannot be opened/)
  })
})

describe('fuzz', () => {
  const valid = JSON.stringify({
    __metadata__: { format: 'pt' },
    a: { dtype: 'BF16', shape: [2, 3], data_offsets: [0, 12] },
    'b.weight': { dtype: 'F32', shape: [4], data_offsets: [12, 28] },
    c: { dtype: 'U8', shape: [0], data_offsets: [28, 28] },
  })

  /** Fails on anything but a result or a CheckpointError. */
  const settles = (json: Uint8Array, bytes: number) => {
    try {
      for (const { begin, end } of parse(json, bytes).tensors.values()) {
        expect(begin >= 0 && begin <= end && end <= bytes).toBe(true)
      }
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error
    }
  }

  test('20 000 headers with bytes changed, put in, taken out and repeated', () => {
    const bytes = encode(valid)
    const edit = fc.record({
      at: fc.nat(bytes.length - 1),
      remove: fc.nat(6),
      insert: fc.oneof(
        fc.uint8Array({ maxLength: 4 }),
        fc
          .constantFrom('{', '}', '[', ']', ',', '"', ':', '\\', '-', '9', '1e9', '9007199254740993', 'null', '\\u0061')
          .map(encode),
        fc.tuple(fc.nat(bytes.length), fc.nat(40)).map(([from, length]) => bytes.slice(from, from + length)),
      ),
    })
    const started = performance.now()
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), fc.nat(60), (edits, buffer) => {
        let json = bytes
        for (const { at, remove, insert } of edits) {
          json = Uint8Array.from([...json.slice(0, at), ...insert, ...json.slice(at + remove)])
        }
        settles(json, buffer < 30 ? 28 : buffer)
      }),
      { numRuns: 20_000, seed: 1 },
    )
    expect(performance.now() - started).toBeLessThan(60_000)
  }, 90_000)

  test('5 000 headers of arbitrary JSON in the shape of entries', () => {
    const size = fc.oneof(fc.nat(40), fc.integer(), fc.double(), fc.maxSafeNat(), fc.constant(2 ** 53))
    const fields = fc.record(
      {
        dtype: fc.oneof(fc.constantFrom('F32', 'BF16', 'U8', 'F4', 'toString', ''), fc.jsonValue()),
        shape: fc.oneof(fc.array(size, { maxLength: 4 }), fc.jsonValue()),
        data_offsets: fc.oneof(fc.tuple(size, size), fc.jsonValue()),
      },
      { requiredKeys: [] },
    )
    const header = fc.dictionary(fc.string(), fc.oneof(fields, fc.jsonValue()), { maxKeys: 4 })
    fc.assert(
      fc.property(header, fc.nat(200), (value, bytes) => settles(encode(JSON.stringify(value)), bytes)),
      { numRuns: 5_000, seed: 2 },
    )
  }, 60_000)

  test('300 files with a changed length field or cut anywhere', async () => {
    const good = safetensors({ a: tensor([2, 3]), b: tensor([4]) })
    const path = folder()
    const { writeFile } = await import('node:fs/promises')
    await fc.assert(
      fc.asyncProperty(
        fc.nat(good.length),
        fc.array(fc.tuple(fc.nat(7), fc.nat(255)), { maxLength: 3 }),
        async (cut, changes) => {
          const bytes = good.slice(0, cut)
          for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value
          const file = join(path, 'm')
          await writeFile(file, bytes)
          try {
            await (await SafetensorsFile.open(file)).close()
          } catch (error) {
            if (!(error instanceof CheckpointError)) throw error
          }
        },
      ),
      { numRuns: 300, seed: 3 },
    )
  }, 60_000)
})
