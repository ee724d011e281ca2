/**
 * The Python peers of `bench cpu` (peers/cpu_peers.py) as a server process: one request and one answer a line, so that ours and theirs are
 * timed in turn. They need a CPU build of torch on the machine; the project itself never does.
 */
import type { ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { peersFolder } from '../paths.js'
import { spawnPeer } from '../peers.js'

/** What the server says of itself when it starts. */
export interface PeerHello {
  readonly torch: string
  /** The instruction set that torch's own kernels use. */
  readonly capability: string
  readonly threads: number
  readonly peers: readonly string[]
  /** Name to description; empty without `--openblas`. */
  readonly blas: Readonly<Record<string, string>>
}

type Answer = Readonly<Record<string, unknown>>

export class PeerServer {
  readonly #child: ChildProcess
  readonly #lines: Interface
  readonly #waiting: { resolve(answer: Answer): void; reject(error: Error): void }[] = []
  #ended: Error | null = null

  private constructor(
    python: string,
    args: readonly string[],
    readonly script: string,
  ) {
    this.#child = spawnPeer(python, [script, ...args], 'piped')
    const { stdout, stdin } = this.#child
    if (stdout === null || stdin === null) throw new Error(`${python}: no pipes to it`)
    stdin.on('error', (error) => this.#end(error))
    this.#child.on('error', (error) =>
      this.#end(new Error(`--python: '${python}' cannot be started: ${error.message}`)),
    )
    this.#child.on('close', (code) => this.#end(new Error(`the peers ended with ${code}`)))
    this.#lines = createInterface({ input: stdout })
    this.#lines.on('line', (line) => this.#answer(line))
  }

  /** Resolves when torch is loaded; rejects when it cannot be, with the interpreter's own words on stderr. */
  static async start(
    python: string,
    args: readonly string[],
    script = join(peersFolder, 'cpu_peers.py'),
  ): Promise<[PeerServer, PeerHello]> {
    const server = new PeerServer(python, args, script)
    try {
      return [server, (await server.#next()) as unknown as PeerHello]
    } catch (error) {
      server.dispose()
      throw error
    }
  }

  /** @throws Error with the peer's own words when it failed; the server goes on */
  async ask(op: string, request: object = {}): Promise<Answer> {
    const answer = this.#next()
    this.#child.stdin?.write(`${JSON.stringify({ op, ...request })}\n`)
    const { error } = await answer
    if (error !== undefined) throw new Error(String(error))
    return answer
  }

  dispose(): void {
    this.#lines.close()
    this.#child.kill('SIGKILL')
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #next(): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== null) reject(this.#ended)
      else this.#waiting.push({ resolve, reject })
    })
  }

  #answer(line: string): void {
    const waiting = this.#waiting.shift()
    try {
      waiting?.resolve(JSON.parse(line) as Answer)
    } catch {
      waiting?.reject(new Error(`the peers answered '${line}', which is not JSON`))
    }
  }

  #end(error: Error): void {
    this.#ended ??= error
    for (const { reject } of this.#waiting.splice(0)) reject(this.#ended)
  }
}
