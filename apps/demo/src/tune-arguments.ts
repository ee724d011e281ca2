/** Flags of `nexus-demo tune`. */
import { type ArgsDef, parseArgs } from 'citty'
import { type DeviceArgument, parseDevice, parseInteger } from './argument-values.js'
import { UsageError } from './exit.js'

export const tuneArgs = {
  model: {
    type: 'string',
    valueHint: 'path',
    description: 'A config.json, or the folder of a checkpoint: its MoE layers',
  },
  shape: {
    type: 'string',
    valueHint: 'dims',
    description: 'hidden:inter:experts:topk of gated experts, instead of a model',
  },
  device: { type: 'string', valueHint: 'device', default: 'auto', description: 'auto, cpu, cuda or cuda:N' },
  dtype: {
    type: 'string',
    valueHint: 'type',
    description: 'f32, bf16 or f16 (default: bf16 on a GPU, f32 on the CPU)',
  },
  tokens: {
    type: 'string',
    valueHint: 'list',
    description: 'Numbers of tokens (default: every token bucket to 4096 on a GPU; 1,8,64,512 on the CPU)',
  },
  seconds: { type: 'string', valueHint: 'n', default: '45', description: 'Time for all of it, 1 to 86400' },
  file: {
    type: 'string',
    valueHint: 'path',
    description: 'Where the choices are kept (default: NEXUS_TUNE_FILE, else the cache)',
  },
  'dry-run': { type: 'boolean', description: 'Measure and print, but write nothing' },
  seed: { type: 'string', valueHint: 'n', default: '0', description: 'Seed of every random number, 0 to 4294967295' },
  json: { type: 'boolean', description: 'Print one JSON document on stdout and nothing else' },
  help: { type: 'boolean', alias: 'h', description: 'Show this help' },
} as const satisfies ArgsDef

export interface TuneShape {
  readonly inputDim: number
  readonly hiddenDim: number
  readonly numExperts: number
  readonly topK: number
}

export interface TuneCommandOptions {
  /** The shape, or the path of a model's configuration. */
  readonly of: TuneShape | string
  readonly device: DeviceArgument
  readonly dtype: 'f32' | 'bf16' | 'f16' | null
  readonly tokens: readonly number[] | null
  readonly seconds: number
  readonly file: string | null
  readonly dryRun: boolean
  readonly seed: number
  readonly json: boolean
}

/** @throws UsageError naming the flag; every word is one of the definitions' */
export function tuneOptions(words: readonly string[]): TuneCommandOptions {
  const args = parseArgs<typeof tuneArgs>([...words], tuneArgs)
  return {
    of: whatOf(args.model, args.shape),
    device: parseDevice(args.device),
    dtype: dtypeOf(args.dtype),
    tokens: args.tokens === undefined ? null : tokensOf(args.tokens),
    seconds: parseInteger('--seconds', args.seconds, 1, 86400),
    file: args.file ?? null,
    dryRun: args['dry-run'] === true,
    seed: parseInteger('--seed', args.seed, 0, 2 ** 32 - 1),
    json: args.json === true,
  }
}

function whatOf(model: string | undefined, shape: string | undefined): TuneShape | string {
  if ((model === undefined) === (shape === undefined)) {
    throw new UsageError(`tune: expected one of --model and --shape, got ${model === undefined ? 'neither' : 'both'}`)
  }
  if (model !== undefined) return model
  const text = shape ?? ''
  const dims = text.split(':')
  const [inputDim, hiddenDim, numExperts, topK] = dims.map((dim) => (/^\d{1,9}$/.test(dim) ? Number(dim) : 0))
  if (dims.length !== 4 || !inputDim || !hiddenDim || !numExperts || !topK) {
    throw new UsageError(`--shape: expected hidden:inter:experts:topk, such as 2048:768:128:8, got '${text}'`)
  }
  return { inputDim, hiddenDim, numExperts, topK }
}

function dtypeOf(text: string | undefined): TuneCommandOptions['dtype'] {
  if (text === undefined) return null
  if (text === 'f32' || text === 'bf16' || text === 'f16') return text
  throw new UsageError(`--dtype: expected f32, bf16 or f16, got '${text}'`)
}

function tokensOf(text: string): number[] {
  const tokens = text.split(',').map((part) => parseInteger('--tokens', part.trim(), 1, 131072))
  if (tokens.length > 64) throw new UsageError(`--tokens: expected at most 64 numbers, got ${tokens.length}`)
  return tokens
}
