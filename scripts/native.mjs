// The native build of kernels/: configured once by cmake-js, then CMake's own no-op. cmake-js ignores changed options
// once a folder is configured, so what it was configured for is written beside it, and another wish means a rebuild.
// `cmake-js build`, not `compile`: the latter answers every compile error with a rebuild from nothing.
import { existsSync, mkdirSync, readFileSync, realpathSync, writeFileSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CommandFailed, root, setUp, stop } from './child.mjs'
import { findNvcc } from './tools.mjs'

const kernels = join(root, 'kernels')

/** NEXUS_CUDA as AUTO, ON or OFF. */
export function cudaOption(env = process.env) {
  const value = (env.NEXUS_CUDA || 'AUTO').toUpperCase()
  if (['AUTO', 'ON', 'OFF'].includes(value)) return value
  return stop(`NEXUS_CUDA must be AUTO, ON or OFF, not '${env.NEXUS_CUDA}'`)
}

/** Builds the addon and the C++ tests; returns whether CUDA was asked for and found. */
export async function buildNative(folder = join(kernels, 'build'), extra = []) {
  const option = cudaOption()
  const nvcc = option === 'OFF' ? null : findNvcc()
  if (option === 'ON' && !nvcc) stop('NEXUS_CUDA=ON needs nvcc: install the CUDA toolkit, or set CUDACXX to its nvcc')
  const cuda = nvcc ? option : 'OFF'
  const args = [`--CDNEXUS_CUDA=${cuda}`, ...extra]
  if (nvcc && process.env.CUDAARCHS) args.push(`--CDCMAKE_CUDA_ARCHITECTURES=${process.env.CUDAARCHS}`)

  const wish = JSON.stringify({ source: kernels, args, nvcc, cxx: process.env.CXX ?? null })
  const record = join(folder, 'nexus-configured.json')
  const configured = existsSync(join(folder, 'CMakeCache.txt'))
  const rebuild = configured && (!existsSync(record) || readFileSync(record, 'utf8') !== wish)
  if (!configured || rebuild) {
    const how = nvcc
      ? `with CUDA (${nvcc})`
      : option === 'OFF'
        ? 'without CUDA (NEXUS_CUDA=OFF)'
        : 'without CUDA (no nvcc)'
    process.stderr.write(`nexus: building the native library ${how}\n`)
  }
  // About 2 GiB for each compiler that runs at once.
  const jobs = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 31)))
  const cmakeJs = join(kernels, 'node_modules', 'cmake-js', 'bin', 'cmake-js')
  const build = (command) =>
    setUp(process.execPath, [cmakeJs, command, '--out', folder, '--parallel', String(jobs), ...args], {
      cwd: kernels,
      env: nvcc ? { CUDACXX: nvcc } : {},
    })
  if (rebuild) await build('clean')
  if (!configured || rebuild) {
    await build('configure')
    mkdirSync(folder, { recursive: true })
    writeFileSync(record, wish)
  }
  await build('build')
  return nvcc !== null
}

// node scripts/native.mjs [FOLDER] [--CDOPTION=VALUE …]: a build of its own beside the usual one, from the same sources.
if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [folder = 'kernels/build', ...extra] = process.argv.slice(2)
  try {
    await buildNative(resolve(folder), extra)
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error
    stop(error.message, error.code)
  }
}
