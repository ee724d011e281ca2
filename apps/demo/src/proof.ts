/** Part one: MoE layers of a checkpoint in the real on-disk format, against the output that transformers recorded. */
import { readFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { MoELayer } from '@nexus/core'
import { Tensor, UnsupportedError } from '@nexus/native'
import { differingChoices, maxAbsoluteError, relativeError } from './compare.js'
import { type Context, throwIfStopped } from './context.js'
import { CheckpointRefused } from './exit.js'
import { scientific, table } from './format.js'
import { type RecordedBlock, readRecording } from './recorded.js'
import type { ProofReport, ProofRow } from './report.js'

/** Relative Frobenius error that a correct layer stays below: the recording is float32 computed from bfloat16 weights. */
const tolerances = { f32: 1e-5, bf16: 1e-2 } as const
const dtypes = ['f32', 'bf16'] as const

/** Without a recording: tokens of seeded noise, only to see the layer run. */
const freeTokens = 64

export async function prove(context: Context, directory: string): Promise<ProofReport> {
  const { output } = context
  output.progress.stage(`proving the checkpoint ${basename(resolve(directory))}`)
  const family = await readModelType(directory)
  const blocks = await readRecording(join(directory, 'moe_io.safetensors'))
  const rows: ProofRow[] = []
  const layers = blocks ?? [null]
  for (const block of layers) {
    for (const dtype of dtypes) {
      throwIfStopped(context.signal)
      rows.push(await proveLayer(context, directory, block, dtype))
      output.progress.tick(rows.length, layers.length * dtypes.length)
    }
  }
  return {
    checkpoint: basename(resolve(directory)),
    family,
    recorded: blocks !== null,
    rows,
    ok: rows.every((row) => row.ok),
  }
}

async function proveLayer(
  { device, seed, signal }: Context,
  directory: string,
  recorded: RecordedBlock | null,
  dtype: 'f32' | 'bf16',
): Promise<ProofRow> {
  const layer = await MoELayer.fromCheckpoint(directory, { layer: recorded?.layer, device, dtype, signal }).catch(
    (error) => {
      throw error instanceof UnsupportedError ? new CheckpointRefused(error) : error
    },
  )
  try {
    const tokens = recorded?.tokens ?? freeTokens
    const shape = [tokens, recorded?.width ?? layer.config.experts.inputDim]
    const x = recorded
      ? Tensor.from(recorded.input, shape, { dtype, device })
      : Tensor.randn(shape, { dtype, device, seed })
    try {
      const first = await layer.forward(x, { routing: true })
      const second = await layer.forward(x)
      const [actual, again, expertIds] = await Promise.all([
        first.output.toFloat32Array(),
        second.output.toFloat32Array(),
        first.routing ? first.routing.expertIds.toArray() : new Int32Array(0),
      ])
      for (const tensor of [first.output, second.output, first.routing?.expertIds, first.routing?.weights])
        tensor?.dispose()
      const repeatable = actual.every((value, i) => Number.isFinite(value) && Object.is(value, again[i]))
      const base = { layer: recorded?.layer ?? null, dtype, tokens, repeatable }
      if (!recorded) {
        return {
          ...base,
          relativeError: null,
          maxAbsoluteError: null,
          tolerance: null,
          differingTokens: null,
          ok: repeatable,
        }
      }
      const error = relativeError(actual, recorded.output)
      const differingTokens = differingChoices(expertIds, recorded.expertIds, recorded.topK)
      return {
        ...base,
        relativeError: error,
        maxAbsoluteError: maxAbsoluteError(actual, recorded.output),
        tolerance: tolerances[dtype],
        differingTokens,
        ok: repeatable && error <= tolerances[dtype] && differingTokens === 0,
      }
    } finally {
      x.dispose()
    }
  } finally {
    layer.dispose()
  }
}

/** Only for show: what is wrong with a configuration, the library says. */
async function readModelType(directory: string): Promise<string | null> {
  try {
    const config: unknown = JSON.parse(await readFile(join(directory, 'config.json'), 'utf8'))
    const type: unknown = typeof config === 'object' && config !== null ? Reflect.get(config, 'model_type') : null
    return typeof type === 'string' ? type : null
  } catch {
    return null
  }
}

export function printProof({ output }: Context, report: ProofReport): void {
  const { style } = output
  const rows = report.rows.map((row) => [
    row.layer === null ? 'first' : String(row.layer),
    row.dtype,
    String(row.tokens),
    row.relativeError === null ? 'n/a' : scientific(row.relativeError),
    row.tolerance === null ? 'n/a' : scientific(row.tolerance),
    row.maxAbsoluteError === null ? 'n/a' : scientific(row.maxAbsoluteError),
    row.differingTokens === null ? 'n/a' : row.differingTokens === 0 ? 'equal' : `${row.differingTokens} differ`,
    row.ok
      ? { text: 'ok', paint: style.green }
      : { text: row.repeatable ? 'FAILED' : 'FAILED (not repeatable)', paint: style.red },
  ])
  output.print(
    '',
    style.bold(`Checkpoint: ${report.checkpoint}${report.family ? ` (model type ${report.family})` : ''}`),
    report.recorded
      ? 'Each MoE layer is loaded from disk and its output compared with what transformers recorded.'
      : 'There is no moe_io.safetensors beside it to compare with: it is only seen to run, twice, with the same result.',
    ...table(
      [
        { title: 'layer' },
        { title: 'dtype', align: 'left' },
        { title: 'tokens' },
        { title: 'relative error' },
        { title: 'allowed' },
        { title: 'largest error' },
        { title: 'experts' },
        { title: 'proof', align: 'left' },
      ],
      rows,
      style.dim,
    ),
  )
}
