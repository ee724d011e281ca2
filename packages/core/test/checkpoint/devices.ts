/** The devices of this machine. A GPU that is not there is a skip that says why, or a failure where NEXUS_REQUIRE_GPU=1. */
import { type DeviceName, resolveDevice } from '@nexus/native'
import { describe, test } from 'vitest'

function reasonWithoutCuda(): string | null {
  try {
    resolveDevice('cuda')
    return null
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

export function onEachDevice(what: string, specification: (device: DeviceName) => void): void {
  describe(`${what} on cpu`, () => specification('cpu'))
  const missing = reasonWithoutCuda()
  if (missing === null) describe(`${what} on cuda:0`, () => specification('cuda:0'))
  else if (process.env.NEXUS_REQUIRE_GPU !== '1') test.skip(`${what} on cuda:0: ${missing}`, () => {})
  else {
    test(`${what} on cuda:0`, () => {
      throw new Error(`NEXUS_REQUIRE_GPU=1, but CUDA cannot be used: ${missing}`)
    })
  }
}
