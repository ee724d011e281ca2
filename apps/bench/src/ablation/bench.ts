/**
 * `bench ablation`: what each part of the design is worth, from the textbook loop to slices and streams. Every rung runs the same steps for
 * seconds, so that its energy and the counters of the chip can be measured; a step that loses is shown as a loss.
 */
import { BaselineMoELayer, EnergyMonitor, MoELayer, Stream, Tensor } from '@nexus/core'
import { type Environment, environment } from '../environment.js'
import { errorText } from '../error-text.js'
import { checkedTokens, layerRows, relativeError } from '../float64.js'
import type { Cell } from '../layer/cells.js'
import { layerOptions } from '../layer-options.js'
import { inputCount } from '../limits.js'
import { readPart } from '../native.js'
import { Owned } from '../owned.js'
import { LogitsFolder } from '../peers.js'
import { cellLogits } from '../random.js'
import { drive, Loop } from '../scheduling/loop.js'
import { quantile } from '../scheduling/statistics.js'
import { type Metered, meteredRun, type Run } from './metered.js'
import { ownLoop, rungs, torchLoop } from './rungs.js'
import { startTorchLoop } from './torch-loop.js'

export interface AblationOptions {
  readonly device: 'cpu' | 'cuda'
  readonly cells: readonly Cell[]
  /** Of each rung. */
  readonly seconds: number
  readonly seed: number
  /** Run the loop in PyTorch too. */
  readonly torch: boolean
  readonly python?: string
  readonly onProgress: (line: string) => void
}

export interface AblationRow extends Metered {
  readonly shape: string
  readonly tokens: number
  readonly skew: number
  readonly rung: string
  /** The rung that it adds to; `null` for the loops. */
  readonly base: string | null
  readonly steps: number
  readonly tokensPerSecond: number
  readonly p50Us: number
  readonly p99Us: number
  /** To float64 on some rows; the loop in PyTorch to float32. */
  readonly relativeError: number
  /** The output has the very bytes of the fused kernels; `null` for the loops, which sum in other orders. */
  readonly sameBits: boolean | null
}

export interface AblationResult {
  readonly kind: 'ablation'
  readonly what: string
  readonly environment: Environment
  readonly seed: number
  readonly seconds: number
  readonly rows: readonly AblationRow[]
  readonly failed: readonly { readonly cell: string; readonly rung: string; readonly why: string }[]
}

/** Steps before what is timed: slices follow the load, and graphs are recorded. */
const warmSteps = 96
/** Steps that are queued ahead of the device. */
const depth = 8
const tolerance = 2e-2

export async function ablationBench(options: AblationOptions): Promise<AblationResult> {
  const { device, cells, seed, seconds } = options
  const rows: AblationRow[] = []
  const failed: { cell: string; rung: string; why: string }[] = []
  using monitor = new EnergyMonitor({ device })
  for (const cell of cells) {
    try {
      await climb(cell, monitor, options, rows, failed)
    } catch (error) {
      failed.push({ cell: `${cell.shape.name} ${cell.tokens}`, rung: 'all that follow', why: errorText(error) })
    }
  }
  return {
    kind: 'ablation',
    what:
      'one layer in a closed loop, rung by rung, from (x, router logits) to y, bf16; intervals between completed steps; one copy of the weights, so ' +
      'those of the smallest configurations stay in the cache, for every rung alike',
    environment: environment(device),
    seed,
    seconds,
    rows,
    failed,
  }
}

/** All rungs of one cell. What cannot be run is written down, and the next is tried. */
async function climb(
  cell: Cell,
  monitor: EnergyMonitor,
  options: AblationOptions,
  rows: AblationRow[],
  failed: { cell: string; rung: string; why: string }[],
): Promise<void> {
  const { shape, tokens, skew } = cell
  const { device, seed, seconds, torch, onProgress } = options
  using owned = new Owned()
  const { own } = owned
  const name = { shape: shape.name, tokens, skew }
  const attempt = async (rung: string, body: () => Promise<{ run: Run; error: number; sameBits: boolean | null }>) => {
    try {
      const { run, error, sameBits } = await body()
      if (!(error < tolerance)) throw new RangeError(`the output is wrong: relative error ${error}`)
      const { metered, times } = await meteredRun(monitor, run, tokens)
      const row: AblationRow = {
        ...name,
        rung,
        base: rungs.find((each) => each.name === rung)?.base ?? null,
        steps: times.steps,
        tokensPerSecond: (times.steps * tokens) / times.seconds,
        p50Us: quantile(times.latenciesUs, 0.5),
        p99Us: quantile(times.latenciesUs, 0.99),
        relativeError: error,
        sameBits,
        ...metered,
      }
      rows.push(row)
      onProgress(`${shape.name} ${tokens} tokens, ${rung}: p50 ${row.p50Us.toFixed(1)} us, ${row.steps} steps`)
    } catch (error) {
      const why = errorText(error)
      failed.push({ cell: `${shape.name} ${tokens}`, rung, why })
      onProgress(`${shape.name} ${tokens} tokens, ${rung}: ${why}`)
    }
  }
  try {
    const host = cellLogits(tokens, shape.experts, inputCount(shape, tokens), skew, seed + tokens)
    if (torch) {
      const folder = own(new LogitsFolder())
      folder.write(cell, host)
      await attempt(torchLoop, async () => {
        const loop = own(await startTorchLoop(cell, folder, options))
        return { run: () => loop.run(), error: loop.relativeError, sameBits: null }
      })
    }
    // The same weights twice: in rows, by which results are checked, and as layers have them.
    const base = own(await MoELayer.create({ ...layerOptions(shape, device, 'bf16'), seed, weightLayout: 'rows' }))
    const usual = own(await MoELayer.create({ ...layerOptions(shape, device, 'bf16'), seed }))
    const [w1, w2] = base.weights.experts
    const inputs = host.map((each, v) => ({
      logits: own(Tensor.from(each, [tokens, shape.experts], { device })),
      x: own(Tensor.randn([tokens, shape.hidden], { dtype: 'bf16', device, seed: seed + 77 * v })),
    }))
    const out = own(Tensor.empty([tokens, shape.hidden], { dtype: 'bf16', device }))
    const [first] = inputs
    const [logits] = host
    if (!first || !logits || !w1 || !w2) throw new RangeError('inputs: expected at least one, got none')
    const checked = checkedTokens(shape, tokens)
    const want = await layerRows(shape, { w1, w2 }, first.x, logits, checked)
    const errorOf = async () =>
      relativeError(await Promise.all(checked.map((t) => readPart(out, t * shape.hidden, shape.hidden))), want)
    const input = (i: number) => inputs[i % inputs.length] ?? first

    const baseline = own(await BaselineMoELayer.create({ weightsFrom: base }))
    await attempt(ownLoop, async () => {
      const step = (i: number) => baseline.forward(input(i).x, { logits: input(i).logits, out })
      for (let i = 3; i >= 0; i--) await step(i)
      return { run: () => awaited(step, seconds), error: await errorOf(), sameBits: null }
    })

    let fused: Uint16Array | null = null
    const stream = Stream.default(device)
    for (const rung of rungs) {
      const layer = await MoELayer.create({
        ...layerOptions(shape, device, 'bf16'),
        weightsFrom: usual,
        ...rung.options,
      }).catch((error: unknown) => error)
      await attempt(rung.name, async () => {
        if (!(layer instanceof MoELayer)) throw layer
        const step = (i: number) => void layer.enqueue(input(i).x, { logits: input(i).logits, out })
        for (let i = warmSteps; i >= 0; i--) {
          step(i * inputs.length)
          if (i % 8 === 0) await stream.synchronize()
        }
        const bits = (await out.toArray()) as Uint16Array
        fused ??= bits
        return {
          run: () => queued(stream, step, seconds),
          error: await errorOf(),
          sameBits: Buffer.compare(Buffer.from(bits.buffer), Buffer.from(fused.buffer)) === 0,
        }
      })
      if (layer instanceof MoELayer) layer.dispose()
    }
  } finally {
    await Stream.default(device).synchronize()
  }
}

/** Steps that wait for the host each. */
async function awaited(step: (i: number) => Promise<unknown>, seconds: number) {
  const latenciesUs: number[] = []
  const begin = performance.now()
  let last = begin
  while (last - begin < seconds * 1e3 || latenciesUs.length < 3) {
    await step(latenciesUs.length)
    const now = performance.now()
    latenciesUs.push((now - last) * 1e3)
    last = now
  }
  return { steps: latenciesUs.length, seconds: (last - begin) / 1e3, latenciesUs }
}

/** Steps that are queued ahead of the device. */
async function queued(stream: Stream, step: (i: number) => void, seconds: number) {
  let i = 0
  const loop = new Loop('steps', stream, () => step(i++), depth)
  try {
    const begin = performance.now()
    await drive([loop], () => loop.intervalsUs.length >= 3 && performance.now() - begin >= seconds * 1e3)
    return { steps: loop.completed, seconds: (performance.now() - begin) / 1e3, latenciesUs: [...loop.intervalsUs] }
  } finally {
    loop.dispose()
  }
}
