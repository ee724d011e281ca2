/** How a section begins, the file and where it was measured, and what it calls a step. */
import type { Environment } from '../environment.js'

/** A step in a sentence. */
export const stepName = ({ shape, tokens }: { readonly shape: string; readonly tokens: number }): string =>
  `${shape} with ${tokens} tokens`

export function head(file: string, e: Environment, what: string, more: readonly string[] = []): string {
  const gpu = e.driver === null ? [] : [`driver ${e.driver}`, `CUDA ${e.cudaRuntime ?? 'n/a'}`]
  const where = [e.device, ...gpu, `Node ${e.node}`, e.date.slice(0, 10)]
  return `## ${file}\n\n${[...where, ...more].join(', ')}.\n${what}.`
}
