import { describe, expect, it } from 'vitest'
import { binding, toNexusError } from '../lib/binding-entry.js'
import {
  AllocationError,
  CheckpointError,
  DeviceError,
  DisposedError,
  GraphCaptureError,
  NativeLoadError,
  NexusError,
  OutOfMemoryError,
  UnsupportedError,
} from '../lib/index.js'

const raw = (code: string, extra: object = {}): Error => Object.assign(new Error('what happened'), { code }, extra)

describe('error classes', () => {
  it.each([
    [new NativeLoadError('m'), 'ERR_NEXUS_NATIVE_LOAD', 'NativeLoadError'],
    [new DeviceError('m'), 'ERR_NEXUS_DEVICE', 'DeviceError'],
    [new OutOfMemoryError('m'), 'ERR_NEXUS_OUT_OF_MEMORY', 'OutOfMemoryError'],
    [new AllocationError('m'), 'ERR_NEXUS_ALLOCATION', 'AllocationError'],
    [new GraphCaptureError('m'), 'ERR_NEXUS_GRAPH_CAPTURE', 'GraphCaptureError'],
    [new CheckpointError('m', { file: 'f' }), 'ERR_NEXUS_CHECKPOINT', 'CheckpointError'],
    [new UnsupportedError('m'), 'ERR_NEXUS_UNSUPPORTED', 'UnsupportedError'],
    [new DisposedError('m'), 'ERR_NEXUS_DISPOSED', 'DisposedError'],
  ])('%s has its code and name', (error, code, name) => {
    expect(error).toBeInstanceOf(NexusError)
    expect(error).toMatchObject({ code, name, message: 'm' })
  })

  it('carry what callers need', () => {
    expect(new CheckpointError('m', { file: 'a.safetensors', tensor: 'w' })).toMatchObject({
      file: 'a.safetensors',
      tensor: 'w',
    })
    expect(new OutOfMemoryError('m', { requested: 5, free: 1 })).toMatchObject({ requested: 5, free: 1 })
  })

  it.each([
    [
      'ERR_NEXUS_DEVICE',
      { nativeError: 'cudaErrorIllegalAddress' },
      DeviceError,
      { nativeError: 'cudaErrorIllegalAddress' },
    ],
    ['ERR_NEXUS_OUT_OF_MEMORY', { requested: 9, available: 4 }, OutOfMemoryError, { requested: 9, free: 4 }],
    ['ERR_NEXUS_OUT_OF_MEMORY', {}, OutOfMemoryError, { requested: null, free: null }],
    ['ERR_NEXUS_UNSUPPORTED', {}, UnsupportedError, {}],
    ['ERR_NEXUS_DISPOSED', {}, DisposedError, {}],
    ['ERR_NEXUS_INTERNAL', {}, NexusError, {}],
  ] as const)('raw %s becomes its class, with the raw error as cause', (code, extra, type, fields) => {
    const error = raw(code, extra)
    const made = toNexusError(error)
    expect(made).toBeInstanceOf(type)
    expect(made).toMatchObject({ code, message: 'what happened', cause: error, ...fields })
  })

  it('errors about arguments, foreign errors and other values stay as they are', () => {
    const nexus = new UnsupportedError('m')
    const range = Object.assign(new RangeError('n: …'), { code: 'ERR_NEXUS_INVALID_ARGUMENT' })
    for (const value of [nexus, range, new TypeError('t'), raw('ENOENT'), 'text', null])
      expect(toNexusError(value)).toBe(value)
  })
})

describe('the raw boundary refuses what would reach foreign memory', () => {
  const { native, routerKernels } = binding()
  const stream = native.streamCreate(-1, 0)
  const buffer = native.bufferCreate(stream, 64)
  const invalid = (message: RegExp) =>
    expect.objectContaining({
      name: 'RangeError',
      code: 'ERR_NEXUS_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    })

  it('values that are no handles', () => {
    for (const value of [null, undefined, 1, {}, 'x', new Float32Array(1)]) {
      expect(() => native.bufferBytes(value as never)).toThrow(TypeError)
    }
  })

  it('handles of another kind', () => {
    expect(() => native.bufferBytes(stream as never)).toThrow(
      invalid(/^buffer: expected a buffer handle, got a stream handle/),
    )
  })

  it('released handles; releasing twice is fine', () => {
    const gone = native.bufferCreate(stream, 8)
    native.release(gone)
    native.release(gone)
    expect(() => native.bufferBytes(gone)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))
  })

  it('extents beyond a buffer', () => {
    expect(() => native.upload(stream, buffer, 0, new Float32Array(17), 0, 0)).toThrow(
      invalid(/^buffer: needs 68 bytes at offset 0, the buffer has 64/),
    )
    expect(() => native.upload(stream, buffer, 4, new Float32Array(16), 0, 0)).toThrow(invalid(/^buffer: needs/))
    expect(() => native.upload(stream, buffer, 2, new Float32Array(1), 0, 0)).toThrow(
      invalid(/^buffer: .*multiple of 4/),
    )
    expect(() => native.download(stream, buffer, 0, 33, 1, 'raw')).toThrow(invalid(/^buffer: needs 66/))
    expect(() => native.copy(stream, buffer, 60, buffer, 0, 8)).toThrow(invalid(/^dst: needs 8 bytes at offset 60/))
    expect(() => native.copy(stream, buffer, 0, buffer, 61, 8)).toThrow(invalid(/^src: /))
    expect(() => native.fillNormal(stream, buffer, 0, 2 ** 52, 0, 1)).toThrow(invalid(/^buffer: /))
    expect(() => native.bufferCreate(stream, -1)).toThrow(invalid(/^bytes: /))
  })

  it('conversions that do not exist', () => {
    expect(() => native.upload(stream, buffer, 0, new Int32Array(1), 3, 0)).toThrow(invalid(/^fromDtype: .*i32 to f32/))
    expect(() => native.cast(stream, buffer, 3, buffer, 0, 1)).toThrow(invalid(/^fromDtype: /))
  })

  it('descriptors out of range', () => {
    const desc = {
      experts: 8,
      topK: 2,
      score: 0,
      groups: 1,
      keepGroups: 1,
      groupValue: 0,
      weigh: 0,
      jitter: 0,
      normalize: 0,
      epsilon: 0,
      scale: 1,
    }
    expect(routerKernels.routeWorkspaceBytes(-1, desc, 5)).toBeGreaterThanOrEqual(0)
    expect(() => routerKernels.routeWorkspaceBytes(-1, { ...desc, topK: 9 }, 5)).toThrow(
      invalid(/^desc\.topK: .*1 to 8, got 9/),
    )
    expect(() => routerKernels.routeWorkspaceBytes(-1, { ...desc, score: 3 }, 5)).toThrow(invalid(/^desc\.score/))
    expect(() => routerKernels.routeWorkspaceBytes(-1, desc, 2 ** 31)).toThrow(invalid(/^tokens: /))
  })
})
