/** Calls into the addon, with its raw errors made public ones. */
import type { NativeBinding } from './binding.js'
import { toNexusError } from './errors.js'
import { loadAddon } from './loader.js'

/**
 * The raw addon, loaded on first use.
 * @throws NativeLoadError
 */
export function binding(): NativeBinding {
  return loadAddon().binding
}

/** Runs `fn`, which calls the addon, and throws what it throws as a public error. */
export function call<T>(fn: (native: NativeBinding) => T): T {
  const native = binding()
  try {
    return fn(native)
  } catch (error) {
    throw toNexusError(error)
  }
}

/** As `call` for functions that return a promise: wrong arguments, which the addon throws synchronously, reject as well. */
export async function callAsync<T>(fn: (native: NativeBinding) => Promise<T>): Promise<T> {
  const native = binding()
  try {
    return await fn(native)
  } catch (error) {
    throw toNexusError(error)
  }
}
