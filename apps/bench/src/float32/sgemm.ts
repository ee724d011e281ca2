/** The peer of `bench float32`: cuBLAS's SGEMM through PyTorch, as a child process. */
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { peersFolder } from '../paths.js'
import { endPeer, spawnPeer } from '../peers.js'
import { type Shape, shapeArgument } from '../shapes.js'

const script = join(peersFolder, 'sgemm.py')

/** Microseconds. */
export interface SgemmTimes {
  /** In the order of the cells. */
  readonly cells: readonly number[]
  readonly squareUs: number | null
}

/** @throws Error where it cannot run, or leaves out a cell */
export async function sgemmTimes(options: {
  readonly cells: readonly { readonly shape: Shape; readonly tokens: number }[]
  readonly budgetMs: number
  readonly python?: string
}): Promise<SgemmTimes> {
  const { cells, budgetMs, python = 'python3' } = options
  const names = cells.map(({ shape, tokens }) => `${shapeArgument(shape)}/${tokens}`)
  const args = [script, '--budget-ms', String(budgetMs), ...names.flatMap((name) => ['--cell', name])]
  const child = spawnPeer(python, args, 'piped')
  const { stdin, stdout } = child
  if (stdin === null || stdout === null) throw new TypeError('stdio: expected pipes, got none')
  stdin.on('error', () => undefined)
  stdin.end()
  const ended = new Promise<void>((resolve, reject) => {
    child.on('error', (error) => reject(new Error(`cuBLAS’s products need python3: ${error.message}`)))
    child.on('close', (code) => (code === 0 ? resolve() : reject(new Error(`cuBLAS’s products ended with ${code}`))))
  })
  ended.catch(() => undefined)
  const times = new Map<string, number>()
  try {
    for await (const line of createInterface({ input: stdout })) {
      const { cell, us } = JSON.parse(line) as { cell?: unknown; us?: unknown }
      if (typeof cell === 'string' && typeof us === 'number') times.set(cell, us)
    }
    await ended
  } finally {
    endPeer(child)
  }
  return {
    cells: names.map((name) => times.get(name) ?? missing(name)),
    squareUs: times.get('square') ?? missing('square'),
  }
}

function missing(name: string): never {
  throw new Error(`cuBLAS’s products: no time of ${name}`)
}
