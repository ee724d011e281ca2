// Graphs and steps that only count.
import type { GraphStep } from '../../src/index.js'

export class FakeGraph {
  readonly captureMs = 2
  disposals = 0
  constructor(
    readonly bytes: number,
    readonly bytesEstimated = false,
  ) {}
  dispose(): void {
    this.disposals++
  }
}

export class Steps {
  eager = 0
  captures = 0
  replays = 0
  readonly graphs: FakeGraph[] = []

  /** Its value is how many steps there were. */
  step(bytes = 100): GraphStep<FakeGraph, number> {
    return {
      eager: () => ++this.eager + this.replays,
      capture: () => {
        this.captures++
        const graph = new FakeGraph(bytes)
        this.graphs.push(graph)
        return graph
      },
      replay: (graph) => {
        if (graph.disposals > 0) throw new Error('replayed after its end')
        return ++this.replays + this.eager
      },
    }
  }
}
