/**
 * Finds the addon, on first use and never at import: an error while a CommonJS module loads under an ESM import would end
 * the process on Node 20 even where it is caught. In this order: `NEXUS_NATIVE_PATH` (when set, nothing else is tried), this
 * package's own build (a checkout or a source build), the prebuilt package of this platform. A file that is there but cannot
 * be loaded ends the search: falling back silently would hide a broken build.
 */
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import type { NativeBinding } from './binding.js'
import { NativeLoadError } from './errors.js'

export type FoundBy = 'NEXUS_NATIVE_PATH' | 'build' | 'package'

export interface LoadedAddon {
  readonly binding: NativeBinding
  readonly path: string
  readonly foundBy: FoundBy
}

// The sources (lib/) and what is built of them (dist/) both lie one folder below the package's root.
const packageRoot = path.join(__dirname, '..')
const requireHere = createRequire(path.join(packageRoot, 'package.json'))
const howToBuild =
  'Build it with: npx nexus-native build   (needs cmake >= 3.22 and a C++20 compiler; nvcc is optional)'

/** musl's loader cannot run a glibc binary. Only a report tells the two apart, and it takes milliseconds: asked when needed. */
function isMusl(): boolean {
  if (process.platform !== 'linux') return false
  const report: unknown = process.report.getReport()
  const header: unknown = typeof report === 'object' && report !== null ? Reflect.get(report, 'header') : null
  return typeof header === 'object' && header !== null && Reflect.get(header, 'glibcVersionRuntime') === undefined
}

/** The name of this platform in package names, such as `linux-x64` or `linux-x64-musl`. */
export function platformTarget(): string {
  return `${process.platform}-${process.arch}${isMusl() ? '-musl' : ''}`
}

/** Of this package, and so of the kernels. */
export function nativeVersion(): string {
  const manifest = requireHere('./package.json') as { readonly version: string }
  return manifest.version
}

const parts = [
  'native',
  'routerKernels',
  'core',
  'slices',
  'profiler',
  'energy',
] as const satisfies (keyof NativeBinding)[]

function isBinding(value: unknown): value is NativeBinding {
  return (
    typeof value === 'object' && value !== null && parts.every((part) => typeof Reflect.get(value, part) === 'object')
  )
}

const messageOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).split('\n')[0] ?? ''

function open(file: string, foundBy: FoundBy): LoadedAddon {
  let loaded: unknown
  try {
    loaded = requireHere(file)
  } catch (cause) {
    throw new NativeLoadError(`@nexus/native: ${file} cannot be loaded: ${messageOf(cause)}\n${howToBuild}`, { cause })
  }
  if (!isBinding(loaded)) {
    throw new NativeLoadError(`@nexus/native: ${file} is not the addon of this version\n${howToBuild}`)
  }
  return { binding: loaded, path: file, foundBy }
}

function find(): LoadedAddon {
  const explicit = process.env.NEXUS_NATIVE_PATH
  if (explicit !== undefined && explicit !== '') {
    const file = path.resolve(explicit)
    if (!existsSync(file)) {
      throw new NativeLoadError(`@nexus/native: NEXUS_NATIVE_PATH is ${file}: no such file\n${howToBuild}`)
    }
    return open(file, 'NEXUS_NATIVE_PATH')
  }
  const built = path.join(packageRoot, 'build', 'Release', 'nexus.node')
  if (existsSync(built)) return open(built, 'build')
  const target = platformTarget()
  const packaged = `@nexus/native-${target}/nexus.node`
  let resolved: string
  try {
    resolved = requireHere.resolve(packaged)
  } catch (cause) {
    const tried = [`${built}: no such file`, `${packaged}: ${messageOf(cause)}`]
    throw new NativeLoadError(
      `@nexus/native has no binary for ${target}. Tried:\n  ${tried.join('\n  ')}\n${howToBuild}`,
      { cause },
    )
  }
  return open(resolved, 'package')
}

let loaded: LoadedAddon | null = null

/**
 * The addon, loaded on the first call. A failure is not remembered: the next call tries again.
 * @throws NativeLoadError saying what was tried and how to build it
 */
export function loadAddon(): LoadedAddon {
  loaded ??= find()
  return loaded
}
