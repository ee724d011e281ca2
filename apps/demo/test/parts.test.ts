/** The demo's parts that need no native code: what would make a proof pass wrongly is tested here. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { MachineInfo, SystemInfo } from '@nexus/native'
import { afterAll, describe, expect, test } from 'vitest'
import { differingChoices, maxAbsoluteError, relativeError } from '../src/compare.js'
import { parseDigits } from '../src/digits.js'
import { examine } from '../src/doctor.js'
import { RecordingError, readRecording } from '../src/recorded.js'

const scratch = mkdtempSync(join(tmpdir(), 'nexus-demo-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

describe('comparisons', () => {
  test('relative error is Frobenius, and never passes what is not finite', () => {
    expect(relativeError([3, 4], [3, 4])).toBe(0)
    expect(relativeError([3, 5], [3, 4])).toBeCloseTo(0.2, 12)
    expect(relativeError([Number.NaN, 4], [3, 4])).toBe(Number.POSITIVE_INFINITY)
    expect(relativeError([1], [0])).toBe(Number.POSITIVE_INFINITY)
    expect(relativeError([0], [0])).toBe(0)
    expect(() => relativeError([1], [1, 2])).toThrow(/expected 2 values, got 1/)
  })
  test('largest error', () => {
    expect(maxAbsoluteError([1, -2, 3], [1, 2, 3])).toBe(4)
    expect(maxAbsoluteError([Number.NaN], [0])).toBe(Number.POSITIVE_INFINITY)
  })
  test('choices are compared as sets, token by token', () => {
    expect(differingChoices([1, 2, 3, 4], [2, 1, 4, 3], 2)).toBe(0)
    expect(differingChoices([1, 2, 3, 5], [2, 1, 4, 3], 2)).toBe(1)
    expect(differingChoices([1, 1], [1, 2], 2)).toBe(1)
    expect(() => differingChoices([], [1, 2], 2)).toThrow(/expected 2 experts, got 0/)
  })
})

describe('recordings', () => {
  const shipped = fileURLToPath(new URL('../assets/qwen3_moe/moe_io.safetensors', import.meta.url))
  test('the shipped one has two layers of 33 tokens', async () => {
    const blocks = await readRecording(shipped)
    expect(blocks?.map(({ layer, tokens, width, topK }) => ({ layer, tokens, width, topK }))).toEqual([
      { layer: 0, tokens: 33, width: 64, topK: 4 },
      { layer: 1, tokens: 33, width: 64, topK: 4 },
    ])
    const first = blocks?.[0]
    expect(first?.expertIds.every((id) => id >= 0 && id < 16)).toBe(true)
    expect(first?.output.some((value) => value !== 0)).toBe(true)
  })
  test('null where there is none', async () => {
    expect(await readRecording(join(scratch, 'nothing'))).toBeNull()
  })
  test.each([
    ['short', Buffer.from('abc'), /3 bytes are too few/],
    ['long header', Buffer.from([255, 0, 0, 0, 0, 0, 0, 0, 123]), /header of 255 bytes reaches past the end/],
    ['no json', Buffer.from([2, 0, 0, 0, 0, 0, 0, 0, 1, 2]), /the header is not JSON/],
    ['empty', Buffer.from('\x02\0\0\0\0\0\0\0{}'), /no tensor named/],
  ])('refuses one that is %s', async (name, bytes, message) => {
    const path = join(scratch, name)
    writeFileSync(path, bytes)
    await expect(readRecording(path)).rejects.toThrow(RecordingError)
    await expect(readRecording(path)).rejects.toThrow(message)
  })
})

describe('digits', () => {
  test('pixels are scaled to 1, comments skipped', () => {
    const { images, labels } = parseDigits(`# comment\n${'16,0,'.repeat(32)}7\n`)
    expect([...labels]).toEqual([7])
    expect([...images.slice(0, 2)]).toEqual([1, 0])
  })
  test('refuses what is no image', () => {
    expect(() => parseDigits('1,2,3')).toThrow(/image 1 is not/)
    expect(() => parseDigits(`${'17,'.repeat(64)}1`)).toThrow(/image 1 is not/)
  })
})

describe('doctor', () => {
  const machine: MachineInfo = {
    cpu: { name: 'A CPU', isa: 'avx2', isas: ['scalar', 'avx2'], cores: 2, threads: 2 },
    memoryBytes: 8 * 2 ** 30,
    cuda: {
      compiled: true,
      usable: false,
      status: 'no NVIDIA driver was found',
      error: 'cudaErrorInsufficientDriver',
      runtimeVersion: '13.0',
      driverVersion: null,
      greenContexts: false,
      tensorMaps: false,
      devices: [],
    },
    nvml: {
      available: false,
      detail: 'libnvidia-ml.so.1: cannot open',
      library: null,
      migModes: [],
      energyCounter: false,
    },
    rapl: { domains: [], detail: 'no powercap' },
  }
  const withGpu: MachineInfo = {
    ...machine,
    cuda: {
      ...machine.cuda,
      usable: true,
      status: 'ok',
      error: null,
      driverVersion: '13.2',
      greenContexts: true,
      tensorMaps: true,
      devices: [
        {
          device: 'cuda:0',
          name: 'A GPU',
          uuid: 'GPU-0',
          computeCapability: '9.0',
          multiprocessors: 132,
          memoryBytes: 141 * 2 ** 30,
          l2Bytes: 50 * 2 ** 20,
          sharedMemoryPerBlockBytes: 232448,
          memoryPools: true,
        },
      ],
    },
    nvml: {
      available: true,
      detail: '580.1',
      library: 'libnvidia-ml.so.1',
      migModes: ['disabled'],
      energyCounter: true,
    },
    rapl: { domains: ['package-0'], detail: '' },
  }
  const on = (found: MachineInfo | null): SystemInfo => ({
    node: 'v20.19.0',
    platform: 'linux',
    arch: 'x64',
    addon: { path: '/somewhere/nexus.node', foundBy: 'build' },
    machine: found,
  })
  const bare = on(machine)
  const gpu = on(withGpu)
  const statusOf = (info: SystemInfo) => Object.fromEntries(examine(info).findings.map((f) => [f.name, f.status]))

  test('a machine with only a CPU is usable, and what is missing comes with what to do', () => {
    const report = examine(bare)
    expect(report).toMatchObject({ usable: true, device: 'cpu' })
    expect(statusOf(bare)).toMatchObject({ node: 'ok', addon: 'ok', cpu: 'ok', cuda: 'missing', nvml: 'missing' })
    expect(report.findings.find((f) => f.name === 'cuda')?.todo).toMatch(/NVIDIA driver/)
    expect(report.findings.find((f) => f.name === 'energy cpu')?.todo).toMatch(/energy_uj/)
  })
  test('a machine with a GPU has nothing missing', () => {
    expect(examine(gpu)).toMatchObject({ usable: true, device: 'cuda:0' })
    expect(new Set(Object.values(statusOf(gpu)))).toEqual(new Set(['ok']))
    expect(examine(gpu).findings.find((f) => f.name === 'cuda')?.detail).toMatch(/runtime 13\.0, driver 13\.2/)
  })
  test('a driver that is too old', () => {
    const old = on({
      ...machine,
      cuda: { ...machine.cuda, status: 'the driver is too old', driverVersion: '12.2' },
    })
    expect(examine(old).findings.find((f) => f.name === 'cuda')?.todo).toMatch(
      /update the NVIDIA driver to one for CUDA 13\.0/,
    )
  })
  test('a CPU that a wrong environment variable makes unusable', () => {
    const report = examine(on({ ...machine, cpu: { ...machine.cpu, isa: '', threads: 0 } }))
    expect(report.usable).toBe(false)
    expect(report.findings.find((f) => f.name === 'cpu')?.detail).toMatch(/NEXUS_CPU_ISA .*NEXUS_NUM_THREADS/)
  })
  test('an addon without CUDA', () => {
    expect(
      examine(on({ ...machine, cuda: { ...machine.cuda, compiled: false } })).findings.find((f) => f.name === 'cuda')
        ?.todo,
    ).toMatch(/nvcc/)
  })
  test('a Node that is too old is not usable', () => {
    expect(examine({ ...bare, node: 'v20.18.1' })).toMatchObject({ usable: false, device: null })
  })
  test('an addon that cannot be loaded is not usable', () => {
    const report = examine({ ...on(null), addon: { error: 'tried: nothing there' } })
    expect(report).toMatchObject({ usable: false, device: null })
    expect(report.findings.at(-1)).toMatchObject({ name: 'addon', status: 'broken', detail: 'tried: nothing there' })
    expect(report.findings.at(-1)?.todo).toMatch(/nexus-native build|NEXUS_NATIVE_PATH/)
  })
})
