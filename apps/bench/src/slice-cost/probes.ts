/** What a stream gives kernels of nothing, and one kernel that only reads: launch cost and bandwidth, on the device and in a slice of it. */
import { combine, Graph, Router, type Stream, Tensor } from '@nexus/core'
import { Owned } from '../owned.js'
import { timeByGraph, timeCalls } from '../timing.js'

export interface Probe {
  /** Of a kernel that does next to nothing, behind another such, launched one at a time. */
  readonly eagerLaunchUs: number
  /** The same as a node of a graph. */
  readonly nodeUs: number
  /** One launch of a graph of a single such node, behind another such. */
  readonly graphUs: number
  /** What a kernel that sums rows moves, in GB/s. */
  readonly gigabytesPerSecond: number
}

const chain = 64
const topK = 8

/** @param stream - of the whole device, or of a slice */
export async function probe(device: 'cpu' | 'cuda', stream: Stream, budgetMs: number): Promise<Probe> {
  using owned = new Owned()
  const { own } = owned
  try {
    const summing = (tokens: number, width: number) => {
      const router = own(new Router({ numExperts: topK, topK, device }))
      const routed = own(router.route(null, own(Tensor.zeros([tokens, topK], { dtype: 'f32', device })), { stream }))
      const rows = own(Tensor.zeros([tokens * topK, width], { dtype: 'bf16', device }))
      const out = own(Tensor.zeros([tokens, width], { dtype: 'bf16', device }))
      const call = () => void combine(rows, routed, { out, stream })
      call()
      return { call, bytes: rows.byteLength + out.byteLength }
    }
    const nothing = summing(1, 16).call
    await stream.synchronize()
    const eager = await timeCalls(stream, [nothing], { budgetMs, maxCalls: 400 })
    const node = await timeByGraph(stream, [nothing], { budgetMs, repeats: chain })
    const graph = own(Graph.capture(stream, nothing))
    const single = await timeCalls(stream, [() => graph.launch(stream)], { budgetMs, maxCalls: 400 })
    // On a GPU ten times its cache; on a CPU so little that a test can wait for it.
    const wide = device === 'cuda' ? summing(16384, 2048) : summing(64, 256)
    const read = await timeCalls(stream, [wide.call], { budgetMs })
    return {
      eagerLaunchUs: eager.medianUs,
      nodeUs: node.medianUs,
      graphUs: single.medianUs,
      gigabytesPerSecond: wide.bytes / read.medianUs / 1e3,
    }
  } finally {
    await stream.synchronize()
  }
}
