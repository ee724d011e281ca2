// The raw addon told nonsense: every function, with handles of the wrong kind, released ones, objects, huge and broken numbers. Each call throws
// or rejects with an error, or does something harmless; the process lives (a crash would end the whole file).
import { describe, expect, it } from 'vitest'
import { binding, streamOf } from '../lib/binding-entry.js'
import { Stream } from '../lib/index.js'
import { generator } from './random.js'

const { native, slices, profiler } = binding()

/** Values that some argument of some function takes, and many that none does. */
function values(): unknown[] {
  const stream = native.streamCreate(-1, 0)
  const released = native.bufferCreate(stream, 64)
  native.release(released)
  const [buffer, large] = [native.bufferCreate(stream, 64), native.bufferCreate(stream, 1 << 20)]
  const lanes = slices.laneSetCreate(stream, Int32Array.of(0, 1), 2, null, true)
  const handles: unknown[] = [
    stream,
    released,
    buffer,
    large,
    lanes,
    profiler.countRingCreate(-1, 2, 4),
    native.eventCreate(-1),
  ]
  native.graphBegin(stream)
  handles.push(native.graphEnd(stream))
  handles.push(slices.partitionCreate(-1, [4, 4]))
  const router = { experts: 2, topK: 1, score: 0, groups: 1, keepGroups: 1, groupValue: 0, weigh: 0 }
  const rule = { jitter: 0, normalize: 0, epsilon: 0, scale: 1 }
  const mlp = { dtype: 0, kind: 0, activation: 1, limit: 7, alpha: 1, experts: 2, input: 2, hidden: 2, output: 2 }
  const plain = [
    { ...router, ...rule },
    mlp,
    null,
    undefined,
    true,
    '',
    'f32',
    'cpu',
    Symbol('s'),
    2n,
    {},
    [],
    [null],
    [4],
    () => 0,
  ]
  const numbers = [-1, 0, 1, 2, 3, 16, 64, 0.5, -0, NaN, Infinity, -Infinity, 2 ** 31, 2 ** 53, 1e300]
  const arrays = [new Float32Array(4), Int32Array.of(0, 1), new Int32Array(0), new Uint16Array(2), new Uint8Array(9)]
  return [...handles, ...handles, ...plain, ...numbers, ...arrays]
}

describe('the raw addon', () => {
  it('survives nonsense in every function', async () => {
    const random = generator(20_26)
    const pick = <T>(list: readonly T[]): T => list[random() % list.length] as T
    // Not about arguments: these start threads of the process or change it for the other tests.
    const left = new Set(['setCpuThreads', 'monitorStart', 'inventoryRequest'])
    const functions = Object.values(binding()).flatMap((part) =>
      Object.entries(part as Record<string, (...args: unknown[]) => unknown>).filter(([name]) => !left.has(name)),
    )
    expect(functions.length).toBeGreaterThan(55)
    let [refused, taken] = [0, 0]
    for (let round = 0; round < 60; round++) {
      const given = values()
      for (const [name, fn] of functions) {
        const args = Array.from({ length: random() % 15 }, () => pick(given))
        try {
          const result = fn(...args)
          taken++
          if (result instanceof Promise)
            await Promise.race([result.catch(() => {}), new Promise((r) => setTimeout(r, 50))])
        } catch (error) {
          refused++
          expect(error, name).toBeInstanceOf(Error)
        }
      }
    }
    expect(refused).toBeGreaterThan(taken)
    await Stream.default('cpu').synchronize()
  })

  it('refuses what is no handle of its own, and handles of another kind, by name', () => {
    const stream = streamOf(Stream.default('cpu'))
    const event = native.eventCreate(-1)
    expect(() => native.graphLaunch({} as never, stream)).toThrow(/^graph: expected a handle of this addon$/)
    expect(() => native.graphLaunch(event as never, stream)).toThrow(
      /^graph: expected a graph handle, got a event handle$/,
    )
    expect(() => native.graphEnd(stream)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_GRAPH_CAPTURE' }))
    expect(() => native.graphAbort(stream)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_GRAPH_CAPTURE' }))
    expect(() => slices.partitionCreate(-1, [0])).toThrow(
      expect.objectContaining({ code: 'ERR_NEXUS_INVALID_ARGUMENT' }),
    )
    expect(() => slices.laneSetUpdate(event as never, stream, Int32Array.of(0), null)).toThrow(
      /^lanes: expected a lane set/,
    )
    native.release(event)
  })
})
