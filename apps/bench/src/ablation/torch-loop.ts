/** The textbook loop in PyTorch as a child process that waits to be started, so that only its steps are metered. */

import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Cell } from '../layer/cells.js'
import { peersFolder } from '../paths.js'
import { endPeer, type LogitsFolder, spawnPeer } from '../peers.js'
import { shapeArgument } from '../shapes.js'

const script = join(peersFolder, 'textbook_loop.py')

/** What its steps took. */
export interface LoopTimes {
  readonly steps: number
  readonly seconds: number
  readonly latenciesUs: readonly number[]
}

export interface TorchLoop {
  /** Relative to float32. */
  readonly relativeError: number
  /** Runs for as long as was asked; once. */
  run(): Promise<LoopTimes>
  dispose(): void
}

/** @throws Error with what the script said, where it cannot run */
export async function startTorchLoop(
  cell: Cell,
  folder: LogitsFolder,
  options: {
    readonly seconds: number
    readonly seed: number
    readonly device: 'cpu' | 'cuda'
    readonly python?: string
  },
): Promise<TorchLoop> {
  const { seconds, seed, device, python = 'python3' } = options
  const args = [script, '--shape', shapeArgument(cell.shape, folder.nameOf(cell)), '--tokens', String(cell.tokens)]
  args.push('--logits', folder.path, '--seconds', String(seconds), '--seed', String(seed), '--device', device)
  const child = spawnPeer(python, args, 'piped')
  const { stdin, stdout } = child
  if (stdin === null || stdout === null) throw new TypeError('stdio: expected pipes, got none')
  // A child that has ended takes no line any more; that it has ended is what is reported.
  stdin.on('error', () => undefined)
  const ended = new Promise<never>((_, reject) => {
    child.on('error', (error) => reject(new Error(`the textbook loop needs python3: ${error.message}`)))
    child.on('close', (code) => reject(new Error(`the textbook loop ended with ${code}`)))
  })
  ended.catch(() => undefined)
  const lines = createInterface({ input: stdout })[Symbol.asyncIterator]()
  const event = async (name: string): Promise<Record<string, unknown>> => {
    for (;;) {
      const { value, done } = await Promise.race([lines.next(), ended])
      // The lines are over a moment before the child is.
      if (done === true) return ended
      const said = JSON.parse(value) as Record<string, unknown>
      if (said.event === name) return said
    }
  }
  try {
    const { error } = await event('ready')
    return {
      relativeError: Number(error),
      async run() {
        stdin.write('go\n')
        const { steps, seconds: took, latenciesUs } = await event('done')
        if (!Array.isArray(latenciesUs)) throw new TypeError('latenciesUs: expected an array')
        return { steps: Number(steps), seconds: Number(took), latenciesUs: latenciesUs.map(Number) }
      },
      dispose: () => endPeer(child),
    }
  } catch (error) {
    endPeer(child)
    throw error
  }
}
