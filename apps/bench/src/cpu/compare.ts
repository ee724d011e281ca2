/** Outputs before times: a peer that computes something else is not timed. */
import { readFileSync, rmSync } from 'node:fs'
import { errorText } from '../error-text.js'
import type { PeerServer } from './peer-server.js'

/** Outputs of the same layer in f32 differ by the order of sums alone. */
const tolerance = 1e-4

/** ‖got − want‖ ÷ ‖want‖. */
export function difference(got: Float32Array, want: Float32Array): number {
  let squares = 0
  let norm = 0
  for (const [i, w] of want.entries()) {
    squares += ((got[i] ?? Number.NaN) - w) ** 2
    norm += w ** 2
  }
  return Math.sqrt(squares / norm)
}

/** Each peer's output for the first input beside ours: who agrees, by how much, and what is wrong with the others. */
export async function comparePeers(
  peers: PeerServer | null,
  names: readonly string[],
  ours: Float32Array,
  path: string,
): Promise<{ readonly agreed: ReadonlyMap<string, number>; readonly failed: Readonly<Record<string, string>> }> {
  const agreed = new Map<string, number>()
  const failed: Record<string, string> = {}
  for (const peer of peers === null ? [] : names) {
    try {
      await peers?.ask('check', { peer, input: 0, out: path })
      const bytes = readFileSync(path)
      const theirs = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength))
      const off = difference(theirs, ours)
      if (off <= tolerance) agreed.set(peer, off)
      else failed[peer] = `its output differs from ours by ${off.toExponential(1)}`
    } catch (error) {
      failed[peer] = errorText(error)
    } finally {
      rmSync(path, { force: true })
    }
  }
  return { agreed, failed }
}
