/**
 * One cell: a shape at a number of tokens. Outputs are compared before anything is timed; then ours and the peers take turns over the same
 * inputs and logits.
 */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { type MoELayer, Stream, Tensor } from '@nexus/core'
import { cellLogits, normals } from '../random.js'
import { comparePeers, difference } from './compare.js'
import type { PeerServer } from './peer-server.js'
import { measureProducts } from './products.js'
import { beyondCache, bf16Aim, type CpuGemmRow, type CpuLayerRow, layerAim, type PeerTimes } from './result.js'
import { type CpuLayers, writeFloats } from './shape-layers.js'
import { type Contestant, inTurns, leastFaster, type Turn, type TurnTimes, timesFaster } from './turns.js'

const device = 'cpu'

export interface CpuCellOptions {
  readonly tokens: number
  readonly rounds: number
  readonly turnMs: number
  readonly seed: number
  readonly folder: string
  readonly peers: PeerServer | null
  readonly peerNames: readonly string[]
  readonly libraries: readonly string[]
  readonly lastLevelCacheBytes: number | null
}

/** Enough inputs that few tokens visit all experts in turn. */
const inputCount = (tokens: number) => Math.max(2, Math.min(16, Math.ceil(64 / tokens)))

/** One result of the median and the rest as the row has it. */
const times = ({ us, minUs }: TurnTimes) => ({ us, minUs })

export async function measureCpuCell(
  layers: CpuLayers,
  options: CpuCellOptions,
): Promise<{ readonly layer: CpuLayerRow; readonly gemm: readonly CpuGemmRow[] }> {
  const { shape } = layers
  const { tokens, seed, folder, peers } = options
  const count = inputCount(tokens)
  const stream = Stream.default(device)
  const hostLogits = cellLogits(tokens, shape.experts, count, 0, seed + tokens)
  const hostXs = hostLogits.map((_, v) => normals(tokens * shape.hidden, seed + 7777 * (v + 1) + tokens))
  const made: Tensor[] = []
  const tensor = (values: Float32Array, columns: number, dtype: 'f32' | 'bf16' = 'f32') => {
    const t = Tensor.from(values, [tokens, columns], { device, dtype })
    made.push(t)
    return t
  }
  const files: string[] = []
  const file = (name: string, values: Float32Array) => {
    const path = join(folder, name)
    writeFloats(path, values)
    files.push(path)
    return path
  }
  try {
    const logits = hostLogits.map((l) => tensor(l, shape.experts))
    const xs = {
      f32: hostXs.map((x) => tensor(x, shape.hidden)),
      bf16: hostXs.map((x) => tensor(x, shape.hidden, 'bf16')),
    }
    const out = {
      f32: Tensor.empty([tokens, shape.hidden], { dtype: 'f32', device }),
      bf16: Tensor.empty([tokens, shape.hidden], { dtype: 'bf16', device }),
    }
    made.push(out.f32, out.bf16)

    // ---- outputs first
    const result = async (layer: MoELayer, dtype: 'f32' | 'bf16') => {
      const [x] = xs[dtype]
      if (x === undefined) throw new RangeError('no inputs')
      const { output, stats } = await layer.forward(x, { logits: logits[0], out: out[dtype] })
      return { values: (await output.toFloat32Array()).slice(), hit: stats.activeExperts }
    }
    const ours = await result(layers.f32, 'f32')
    const narrow = await result(layers.bf16, 'bf16')
    let hit = 0
    for (const [v, x] of xs.f32.entries()) {
      hit += (await layers.f32.forward(x, { logits: logits[v], out: out.f32 })).stats.activeExperts / count
    }
    if (peers !== null) {
      await peers.ask('inputs', {
        tokens,
        x: hostXs.map((x, v) => file(`x-${v}.f32`, x)),
        logits: hostLogits.map((l, v) => file(`logits-${v}.f32`, l)),
      })
    }
    const { agreed, failed } = await comparePeers(peers, options.peerNames, ours.values, join(folder, 'out.f32'))

    // ---- then in turns
    let next = 0
    const step = (layer: MoELayer, dtype: 'f32' | 'bf16') => {
      const v = next++ % count
      const x = xs[dtype][v]
      if (x !== undefined) layer.enqueue(x, { logits: logits[v], out: out[dtype] })
    }
    const queued =
      (layer: MoELayer, dtype: 'f32' | 'bf16'): Turn =>
      async (calls) => {
        const start = performance.now()
        for (let i = 0; i < calls; i++) step(layer, dtype)
        await stream.synchronize()
        return ((performance.now() - start) * 1e3) / calls
      }
    const alone: Turn = async (calls) => {
      const start = performance.now()
      for (let i = 0; i < calls; i++) {
        step(layers.f32, 'f32')
        await stream.synchronize()
      }
      return ((performance.now() - start) * 1e3) / calls
    }
    const asked =
      (op: string, request: object): Turn =>
      async (calls) => {
        if (peers === null) throw new RangeError('no peers')
        return Number((await peers.ask(op, { ...request, calls })).us)
      }
    const contestants: Contestant[] = [
      { name: 'f32', turn: queued(layers.f32, 'f32') },
      { name: 'bf16', turn: queued(layers.bf16, 'bf16') },
      { name: 'alone', turn: alone },
      ...[...agreed.keys()].map((peer) => ({ name: `peer ${peer}`, turn: asked('time', { peer }) })),
    ]
    const measured = await inTurns(contestants, options.rounds, options.turnMs)
    const of = (name: string): TurnTimes => {
      const found = measured.get(name)
      if (found === undefined) throw new RangeError(`${name} was not timed`)
      return found
    }
    const peerTimes: Record<string, PeerTimes> = {}
    for (const [peer, off] of agreed) {
      const theirs = of(`peer ${peer}`)
      peerTimes[peer] = { ...times(theirs), faster: timesFaster(theirs, of('f32')), difference: off }
    }
    const ratios = Object.values(peerTimes).map(({ faster }) => leastFaster(faster))
    const visited = Math.min(shape.experts, hit * count)
    const touchedBytes = visited * 3 * shape.hidden * shape.inter * 2
    const layer: CpuLayerRow = {
      shape: shape.name,
      tokens,
      expertsHit: hit,
      nexusUs: of('f32').us,
      nexusMinUs: of('f32').minUs,
      alone: times(of('alone')),
      peers: peerTimes,
      failed,
      fasterThanBest: ratios.length === 0 ? null : Math.min(...ratios),
      aim: layerAim(tokens),
      bf16: {
        us: of('bf16').us,
        faster: timesFaster(of('f32'), of('bf16')),
        difference: difference(narrow.values, ours.values),
        touchedBytes,
        aim: tokens === 1 && beyondCache(touchedBytes, options.lastLevelCacheBytes) ? bf16Aim : null,
      },
    }

    return { layer, gemm: await measureProducts(layers, xs.f32, logits, asked, options) }
  } finally {
    for (const t of made) t.dispose()
    for (const path of files) rmSync(path, { force: true })
  }
}
