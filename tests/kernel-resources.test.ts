// The reader of compiled kernels and what the page of their resources makes of it, on kernels compiled here, where there is nvcc.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { cubinsOf, readCubin } from '../scripts/cubin.mjs'
import { askShapes, definitionOf, shapeParameters, tableOf } from '../scripts/kernel-launches.mjs'
import { compare, compilerOf, faultsOf, nameOf, render } from '../scripts/kernel-resources.mjs'
import { findNvcc } from '../scripts/tools.mjs'
import { needs } from './tags.js'

const nvcc = findNvcc()
const version = nvcc === null ? '' : spawnSync(nvcc, ['--version'], { encoding: 'utf8' }).stdout
const cuda13 = Number(/release (\d+)/.exec(version)?.[1] ?? 0) >= 13

describe.skipIf(!cuda13)(`compiled kernels${cuda13 ? '' : ' (no nvcc of CUDA 13)'}`, () => {
  needs('compiler').describe('of a linked file', () => {
    const source = `
__global__ void __launch_bounds__(96) plain(float* x) { x[threadIdx.x] = 1; }
__global__ void __launch_bounds__(256) holds(float* x) {
  __shared__ float kept[768];
  kept[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = kept[255 - threadIdx.x];
}
__global__ void dynamic(float* x) {
  extern __shared__ float given[];
  given[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = given[31 - threadIdx.x];
}
__global__ void indexes(int* x, int n) {
  volatile int kept[64];
  for (int i = 0; i < n; ++i) kept[x[i] & 63] = i;
  x[0] = kept[n & 63];
}
__global__ void elsewhere(float* x) {
#if __CUDA_ARCH__ >= 900
  x[threadIdx.x] = 1;
#endif
}
__global__ void traps(float* x) {
#if __CUDA_ARCH__ >= 900
  x[threadIdx.x] = 1;
#else
  __trap();
#endif
}
// More values live at once than 32 registers hold.
__global__ void __launch_bounds__(1024, 2) spills(float* x) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = kept[63 - i] * kept[i] + kept[(i * 7) & 63];
}
`
    let folder = ''
    const read = new Map<string, ReturnType<typeof readCubin>>()
    const kernel = (arch: string, name: string) => {
      const found = read.get(arch)?.kernels.find(({ symbol }) => symbol.includes(name))
      if (found === undefined) throw new Error(`no ${name} for ${arch}`)
      return found
    }
    beforeAll(() => {
      folder = mkdtempSync(join(tmpdir(), 'nexus-cubin-'))
      writeFileSync(join(folder, 'kernels.cu'), source)
      const targets = ['80', '90a'].flatMap((arch) => ['-gencode', `arch=compute_${arch},code=sm_${arch}`])
      const made = spawnSync(
        nvcc ?? '',
        ['-c', ...targets, '-o', join(folder, 'kernels.o'), join(folder, 'kernels.cu')],
        { encoding: 'utf8' },
      )
      expect(made.status, made.stderr).toBe(0)
      for (const cubin of cubinsOf(readFileSync(join(folder, 'kernels.o')))) {
        const each = readCubin(cubin)
        read.set(each.arch, each)
      }
    }, 60_000)
    afterAll(() => rmSync(folder, { recursive: true, force: true }))

    test('every architecture and kernel is there, with who compiled it', () => {
      expect([...read.keys()]).toEqual(['sm_80', 'sm_90a'])
      for (const { kernels, compiler } of read.values()) {
        expect(kernels).toHaveLength(7)
        expect(compiler).toMatch(/^V\d+\.\d+\.\d+$/)
        for (const { registers } of kernels) expect(registers).toBeGreaterThan(3)
      }
    })

    test.each(['sm_80', 'sm_90a'])('threads, shared memory, stack and spills on %s', (arch) => {
      expect(kernel(arch, 'plain')).toMatchObject({
        empty: false,
        maxThreads: 96,
        staticBytes: 0,
        stackBytes: 0,
        spills: 0,
      })
      expect(kernel(arch, 'holds')).toMatchObject({
        maxThreads: 256,
        staticBytes: 3072,
        mayShare: true,
        stackBytes: 0,
      })
      expect(kernel(arch, 'dynamic')).toMatchObject({ maxThreads: null, staticBytes: 0, mayShare: true })
      expect(kernel(arch, 'indexes')).toMatchObject({ stackBytes: 256, spills: 0 })
      for (const name of ['elsewhere', 'traps']) expect(kernel(arch, name).empty).toBe(arch === 'sm_80')
      const spilling = kernel(arch, 'spills')
      expect(spilling).toMatchObject({ maxThreads: 1024, registers: 32 })
      expect(spilling.stackBytes).toBeGreaterThan(0)
      expect(spilling.spills).toBeGreaterThan(0)
    })

    test('the shapes of the kernels give their shared memory and threads', () => {
      const shape = 'nexus::cuda::MmaShape<__nv_bfloat16, 16, 32, 128, 1, 4, 6, 3, false>'
      // Six stages of 16 + 32 rows of 128 halves, and 12 bytes a row.
      expect(askShapes(nvcc ?? '', [shape]).get(shape)).toEqual({
        dynamicBytes: 6 * 48 * 128 * 2 + 16 * 12,
        threads: 128,
      })
      expect(askShapes(nvcc ?? '', ['nexus::cuda::GroupedParams']).get('nexus::cuda::GroupedParams')).toEqual({
        dynamicBytes: null,
        threads: null,
      })
    }, 60_000)
  })
})

test('a file that is none, or has no device code, is told from one that has', () => {
  expect(() => cubinsOf(Buffer.alloc(128))).toThrow(/^expected a little-endian ELF file of 64 bits$/)
  expect(cubinsOf(readFileSync(process.execPath))).toEqual([])
})

test('a table in PTX, in bytes or in words, its last zeros left out', () => {
  expect(tableOf('.global .align 4 .b8 t[12] = {224, 78, 3, 0, 0, 22, 1};', 't', 3)).toEqual([216800, 71168, 0])
  expect(tableOf('.visible .global .align 4 .u32 t[3] = {216800, 128};', 't', 3)).toEqual([216800, 128, 0])
  expect(() => tableOf('.global .b8 u[4] = {1};', 't', 1)).toThrow(/^PTX: no table 't'$/)
})

test('names of kernels are taken apart', () => {
  expect(
    nameOf(
      'void nexus::cuda::hopper::mm<nexus::cuda::hopper::Shape<__half, 64>, true>(nexus::cuda::P, CUtensorMap_st)',
    ),
  ).toEqual({
    qualified: 'nexus::cuda::hopper::mm',
    kernel: 'mm',
    templateArguments: ['nexus::cuda::hopper::Shape<__half, 64>', 'true'],
    shape: 'nexus::cuda::hopper::Shape<__half, 64>',
    instance: 'Shape<f16, 64>, true',
  })
  expect(nameOf('nexus::cuda::(anonymous namespace)::scan(int*, int)')).toEqual({
    qualified: 'nexus::cuda::scan',
    kernel: 'scan',
    templateArguments: [],
    shape: null,
    instance: '',
  })
  expect(nameOf('void nexus::cast<float, __nv_bfloat16>(float const*)')).toMatchObject({
    shape: null,
    instance: 'f32, bf16',
  })
})

needs('compiler').test('the sources say where a kernel stands and what its parameters are', () => {
  expect(definitionOf('grouped_mma_kernel')).toEqual({ file: 'data/cuda/grouped_mma.cuh', parameters: 'S, LANES' })
  expect(definitionOf('route_scan_kernel')).toEqual({ file: 'data/cuda/route_large.cu', parameters: '' })
  expect(definitionOf('no_such_kernel')).toBeNull()
  expect(shapeParameters('SimtShape')).toBe('TIn, TW, BM, BN, BK, TM, TN, MIN_BLOCKS')
})

describe('the page', () => {
  const figures = {
    threads: 128,
    registers: 40,
    staticBytes: 0,
    dynamicBytes: 0,
    atMost: false,
    stackBytes: 0,
    spills: 0,
    blocks: 12,
    warps: 48,
    by: ['registers'],
  }
  const row = (kernel: string, instance: string, on: Record<string, object>) => ({
    ...nameOf(`void nexus::cuda::${kernel}<${instance}>(int)`),
    on: Object.fromEntries(Object.entries(on).map(([arch, changed]) => [arch, { ...figures, ...changed }])),
  })

  test('a spill is a fault, and so are a stack that nothing explains and a block too large', () => {
    expect(faultsOf([row('k', 'float', { sm_80: {}, sm_90a: {} })])).toEqual([])
    expect(faultsOf([row('k', 'float', { sm_80: {}, sm_90a: { spills: 2, stackBytes: 8 } })])).toEqual([
      'k<f32> on sm_90a spills: 2 instructions, 8 bytes (accepted: 0)',
    ])
    // A compiler that does not mark spills leaves the stack.
    expect(faultsOf([row('k', 'float', { sm_80: { stackBytes: 16 } })])).toEqual([
      'k<f32> on sm_80 has a stack of 16 bytes that nothing explains',
    ])
    expect(faultsOf([row('k', 'float', { sm_80: { blocks: 0 } })])).toEqual([
      'k<f32> on sm_80 cannot be launched: no block fits on an SM',
    ])
    expect(faultsOf([row('fill_normal_kernel', 'float', { sm_80: { stackBytes: 40 } })])).toEqual([])
    expect(faultsOf([row('fill_normal_kernel', 'float', { sm_80: { stackBytes: 40, spills: 1 } })])).toHaveLength(1)
  })

  test('an accepted spill may not grow, nor spread to another architecture', () => {
    const gemv = (arch: string, spills: number) =>
      faultsOf([row('grouped_gemv_lanes_kernel', 'float, false', { [arch]: { spills, stackBytes: 8 } })])
    expect(gemv('sm_80', 3)).toEqual([])
    expect(gemv('sm_80', 4)).toHaveLength(1)
    expect(gemv('sm_90a', 1)).toHaveLength(1)
  })

  test('is compared with that of the same compiler only', () => {
    const rows = [row('k', 'float', { sm_80: {}, sm_90a: { registers: 48, blocks: 10, warps: 40 } })]
    const now = render(rows, 'V13.0.88')
    expect(now).toContain('| `f32` | 128 | 40 / 48 | 0 | 0 | 0 | 0 | 12 / 10 | 48 / 40 | registers |')
    expect(now).toContain('None spills.')
    expect(compilerOf(now)).toBe('V13.0.88')
    expect(compare(now, now, 'V13.0.88')).toBe('same')
    expect(compare(now.replace('12 / 10', '12 / 9'), now, 'V13.0.88')).toBe('stale')
    expect(compare(render(rows, 'V12.8.93'), now, 'V13.0.88')).toBe('of another compiler')
    expect(compare('', now, 'V13.0.88')).toBe('stale')
  })
})
