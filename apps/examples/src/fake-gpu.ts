/**
 * A GPU to be metered where there is none: this project's stand-in for NVML (kernels/test-support/fake_nvml.cpp, built with the C++ tests), whose
 * energy counter adds up the watts that are said here over real time.
 */
import { copyFileSync, existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const fakeGpuUuid = 'GPU-00000000-0000-4000-8000-000000000000'

const built =
  process.env.NEXUS_FAKE_NVML ?? fileURLToPath(new URL('../../../kernels/build/test/libfake_nvml.so', import.meta.url))

/** Why there is no stand-in; `null` where it is there. */
export const noFakeGpu: string | null = existsSync(built) ? null : `no stand-in for NVML: ${built}`

export interface FakeGpu {
  /** What it draws from now on; further orders of fake_nvml.cpp may follow. */
  watts(watts: number, ...orders: readonly string[]): void
  /** NVML is what it was before. Monitors are disposed of first. */
  dispose(): void
}

/** From now on, this process finds the stand-in where it looks for NVML. */
export function fakeGpu(): FakeGpu {
  // A copy, since its control file lies beside it.
  const folder = mkdtempSync(join(tmpdir(), 'nexus-fake-gpu-'))
  const library = join(folder, 'libnvml.so')
  copyFileSync(built, library)
  const before = process.env.NEXUS_NVML_PATH
  process.env.NEXUS_NVML_PATH = library
  return {
    watts(watts, ...orders) {
      const control = `${library}.control`
      writeFileSync(`${control}.new`, ['tick_ms 10', `power 0 ${Math.round(1000 * watts)}`, ...orders, ''].join('\n'))
      renameSync(`${control}.new`, control)
    },
    dispose() {
      if (before === undefined) delete process.env.NEXUS_NVML_PATH
      else process.env.NEXUS_NVML_PATH = before
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
