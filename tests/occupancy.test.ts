// How many blocks fit on an SM: known cases, and CUDA's own cuda_occupancy.h, where there is nvcc to compile it, over a grid of blocks.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { limits, occupancy } from '../scripts/occupancy.mjs'
import { findNvcc } from '../scripts/tools.mjs'
import { needs } from './tags.js'

const fits = (capability: '8.0' | '9.0', threads: number, registers: number, sharedBytes: number) =>
  occupancy({ capability, threads, registers, sharedBytes })

describe('occupancy()', () => {
  test.each([
    ['by threads', '9.0', 256, 32, 0, 8, ['threads', 'registers']],
    ['by blocks, of one warp each', '9.0', 32, 16, 0, 32, ['blocks']],
    ['by registers, given to warps in 256', '8.0', 256, 33, 0, 6, ['registers']],
    ['by registers in the quarter of an SM', '9.0', 384, 168, 0, 1, ['registers']],
    ['by registers, of two warps a block', '8.0', 64, 100, 0, 8, ['registers']],
    ['by shared memory of 8.0', '8.0', 128, 70, 73920, 2, ['shared memory']],
    ['by shared memory of 9.0', '9.0', 128, 70, 73920, 3, ['shared memory']],
    ['with the last byte that a block may have', '8.0', 128, 32, 163 * 1024, 1, ['shared memory']],
    ['with a byte more', '8.0', 128, 32, 163 * 1024 + 1, 0, ['shared memory']],
    ['with more registers than there are', '9.0', 1024, 72, 0, 0, ['registers']],
    ['with more threads than a block may have', '9.0', 1056, 16, 0, 0, ['threads']],
  ] as const)('%s', (_, capability, threads, registers, sharedBytes, blocks, by) => {
    expect(fits(capability, threads, registers, sharedBytes)).toEqual({
      blocks,
      warps: blocks * Math.ceil(threads / 32),
      by,
    })
  })

  test('what is no block is refused by name', () => {
    expect(() => fits('7.0' as '8.0', 32, 16, 0)).toThrow(/^capability: expected one of 8.0, 9.0, got 7.0$/)
    expect(() => fits('8.0', 0, 16, 0)).toThrow(/^threads: expected an integer of at least 1, got 0$/)
    expect(() => fits('8.0', 32, 1.5, 0)).toThrow(/^registers: .*1\.5$/)
    expect(() => fits('8.0', 32, 16, -1)).toThrow(/^sharedBytes: .*-1$/)
  })

  const nvcc = findNvcc()
  describe.skipIf(nvcc === null)(`with nvcc${nvcc === null ? ' (not found)' : ''}`, () => {
    needs('compiler').test(
      'says what cuda_occupancy.h says',
      () => {
        const folder = mkdtempSync(join(tmpdir(), 'nexus-occupancy-'))
        try {
          const [source, program] = [join(folder, 'ask.cpp'), join(folder, 'ask')]
          writeFileSync(source, asking)
          const compiled = spawnSync(nvcc ?? '', ['-cudart', 'none', '-o', program, source], { encoding: 'utf8' })
          expect(compiled.status, compiled.stderr).toBe(0)
          const told = spawnSync(program, { encoding: 'utf8', maxBuffer: 2 ** 26 })
          const lines = told.stdout.trimEnd().split('\n')
          expect(lines.length).toBeGreaterThan(50_000)
          const wrong = lines.filter((line) => {
            const [major, threads, registers, shared, blocks] = line.split(' ').map(Number)
            const of = fits(major === 8 ? '8.0' : '9.0', threads ?? 0, registers ?? 0, shared ?? 0)
            return of.blocks !== blocks
          })
          expect(wrong.slice(0, 5)).toEqual([])
        } finally {
          rmSync(folder, { recursive: true, force: true })
        }
      },
      60_000,
    )
  })
})

const of = (capability: keyof typeof limits) =>
  `{${capability[0]}, ${limits[capability].sharedBytes}, ${limits[capability].sharedBytesPerBlock}}`
// A line for each block: capability, threads, registers, shared memory, blocks on an SM. Even shared memory is static, odd dynamic: there is
// no difference.
const asking = `#include <cuda_occupancy.h>
#include <cstdio>
#include <initializer_list>
struct Sm { int major, shared, per_block; };
int main() {
  for (const Sm sm : {Sm${of('8.0')}, Sm${of('9.0')}})
    for (int threads = 1; threads <= 1056; threads += threads < 8 ? 7 : 24)
      for (int registers = 16; registers <= 255; registers += 3)
        for (int shared = 0, i = 0; shared <= sm.per_block + 600; shared += i < 4 ? 127 : 12289, ++i) {
          cudaOccDeviceProp device;
          device.computeMajor = sm.major;
          device.maxThreadsPerBlock = 1024;
          device.maxThreadsPerMultiprocessor = 2048;
          device.regsPerBlock = device.regsPerMultiprocessor = 65536;
          device.warpSize = 32;
          device.sharedMemPerBlock = 48 * 1024;
          device.sharedMemPerMultiprocessor = sm.shared;
          device.sharedMemPerBlockOptin = sm.per_block;
          device.reservedSharedMemPerBlock = 1024;
          device.numSms = 1;
          cudaOccFuncAttributes kernel;
          kernel.maxThreadsPerBlock = 1024;
          kernel.numRegs = registers;
          kernel.sharedSizeBytes = i % 2 ? 0 : shared;
          kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
          kernel.maxDynamicSharedSizeBytes = i % 2 ? shared : 0;
          kernel.numBlockBarriers = 1;
          const cudaOccDeviceState state;
          cudaOccResult result;
          const auto status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, i % 2 ? shared : 0);
          std::printf("%d %d %d %d %d\\n", sm.major, threads, registers, shared, status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
        }
}
`
