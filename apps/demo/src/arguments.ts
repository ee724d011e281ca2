/**
 * The command line. The definitions are citty's, and so is the parsing; but citty lets unknown flags, missing values and
 * stray words pass, so every word is checked against the definitions first.
 */
import { type ArgsDef, parseArgs } from 'citty'
import { type DeviceArgument, parseDevice, parseInteger } from './argument-values.js'
import { UsageError } from './exit.js'
import { nearest } from './nearest.js'
import { type TuneCommandOptions, tuneArgs, tuneOptions } from './tune-arguments.js'

const common = {
  json: { type: 'boolean', description: 'Print one JSON document on stdout and nothing else' },
  help: { type: 'boolean', alias: 'h', description: 'Show this help' },
} as const satisfies ArgsDef

/** Flags of `nexus-demo`. */
export const demoArgs = {
  device: { type: 'string', valueHint: 'device', default: 'auto', description: 'auto, cpu, cuda or cuda:N' },
  seed: { type: 'string', valueHint: 'n', default: '0', description: 'Seed of every random number, 0 to 4294967295' },
  batches: {
    type: 'string',
    valueHint: 'list',
    default: '64,128,256,512',
    description: 'Batch sizes of the comparison, in tokens',
  },
  runs: {
    type: 'string',
    valueHint: 'n',
    description: 'Timed runs for each batch size, 1 to 1000 (default: 25, fewer on a slow machine)',
  },
  checkpoint: {
    type: 'string',
    valueHint: 'dir',
    description: 'A checkpoint folder to load instead of the one that is shipped',
  },
  ...common,
  version: { type: 'boolean', alias: 'V', description: 'Show the version' },
} as const satisfies ArgsDef

/** Flags of `nexus-demo doctor`. */
export const doctorArgs = common

/** Flags of `nexus-demo top`. */
export const topArgs = {
  device: demoArgs.device,
  strategy: {
    type: 'string',
    valueHint: 'name',
    default: 'auto',
    description: 'auto, fused, tiered, streams or cooperative',
  },
  interval: { type: 'string', valueHint: 'ms', default: '1000', description: 'Time between two views, 100 to 60000' },
  seconds: {
    type: 'string',
    valueHint: 'n',
    description: 'Ends after so long, 1 to 86400 (default: with q or Ctrl-C)',
  },
  seed: demoArgs.seed,
  json: { type: 'boolean', description: 'Print one JSON object a line on stdout and nothing else' },
  help: common.help,
} as const satisfies ArgsDef

export interface DemoOptions {
  readonly device: DeviceArgument
  readonly seed: number
  readonly batches: readonly number[]
  /** `null`: 25, or as many as the time for a batch size allows. */
  readonly runs: number | null
  readonly checkpoint: string | null
  readonly json: boolean
}

export const topStrategies = ['auto', 'fused', 'tiered', 'streams', 'cooperative'] as const

export interface TopOptions {
  readonly device: DemoOptions['device']
  readonly strategy: (typeof topStrategies)[number]
  readonly intervalMs: number
  /** `null`: until it is asked to end. */
  readonly seconds: number | null
  readonly seed: number
  readonly json: boolean
}

export type Command =
  | { readonly name: 'demo'; readonly options: DemoOptions }
  | { readonly name: 'doctor'; readonly json: boolean }
  | { readonly name: 'top'; readonly options: TopOptions }
  | { readonly name: 'tune'; readonly options: TuneCommandOptions }
  | { readonly name: 'help'; readonly topic: Topic }
  | { readonly name: 'version' }

/** What there is help for. */
export type Topic = 'demo' | Subcommand
type Subcommand = (typeof subcommands)[number]
const subcommands = ['doctor', 'top', 'tune'] as const
const definitionsOf: Record<Topic, ArgsDef> = { demo: demoArgs, doctor: doctorArgs, top: topArgs, tune: tuneArgs }

/** @throws UsageError that names the word which is wrong. */
export function parseCommand(words: readonly string[]): Command {
  const topic = subcommands.find((name) => name === words[0]) ?? 'demo'
  const rest = topic === 'demo' ? words : words.slice(1)
  if (rest[0] === 'help' || rest.includes('--help') || rest.includes('-h')) return { name: 'help', topic }
  checkWords(rest, definitionsOf[topic], topic !== 'demo')
  if (topic === 'tune') return { name: 'tune', options: tuneOptions(rest) }
  if (topic === 'top') return { name: 'top', options: topOptions(rest) }
  if (topic === 'doctor')
    return { name: 'doctor', json: parseArgs<typeof doctorArgs>([...rest], doctorArgs).json === true }
  const args = parseArgs<typeof demoArgs>([...rest], demoArgs)
  if (args.version) return { name: 'version' }
  return {
    name: 'demo',
    options: {
      device: parseDevice(args.device),
      seed: parseInteger('--seed', args.seed, 0, 2 ** 32 - 1),
      batches: parseBatches(args.batches),
      runs: args.runs === undefined ? null : parseInteger('--runs', args.runs, 1, 1000),
      checkpoint: args.checkpoint ?? null,
      json: args.json === true,
    },
  }
}

function topOptions(words: readonly string[]): TopOptions {
  const args = parseArgs<typeof topArgs>([...words], topArgs)
  const strategy = topStrategies.find((name) => name === args.strategy)
  if (strategy === undefined)
    throw new UsageError(`--strategy: expected ${topStrategies.join(', ')}, got '${args.strategy}'`)
  return {
    device: parseDevice(args.device),
    strategy,
    intervalMs: parseInteger('--interval', args.interval, 100, 60000),
    seconds: args.seconds === undefined ? null : parseInteger('--seconds', args.seconds, 1, 86400),
    seed: parseInteger('--seed', args.seed, 0, 2 ** 32 - 1),
    json: args.json === true,
  }
}

function checkWords(words: readonly string[], definitions: ArgsDef, subcommand: boolean): void {
  const flags = new Map<string, string>()
  for (const [name, definition] of Object.entries(definitions)) {
    flags.set(`--${name}`, name)
    if ('alias' in definition && typeof definition.alias === 'string') flags.set(`-${definition.alias}`, name)
  }
  const seen = new Set<string>()
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? ''
    if (!word.startsWith('-') || word === '-') {
      const near = subcommand ? null : nearest(word, [...subcommands, 'help'])
      throw new UsageError(`unexpected argument '${word}'${near ? `; did you mean '${near}'?` : ''}`)
    }
    const equals = word.indexOf('=')
    const flag = equals < 0 ? word : word.slice(0, equals)
    const name = flags.get(flag)
    if (name === undefined) {
      const near = nearest(
        flag,
        [...flags.keys()].filter((known) => known.startsWith('--')),
      )
      throw new UsageError(`unknown option '${flag}'${near ? `; did you mean '${near}'?` : ''}`)
    }
    if (seen.has(name)) throw new UsageError(`option '--${name}' was given twice`)
    seen.add(name)
    if (definitions[name]?.type === 'boolean') {
      if (equals >= 0) throw new UsageError(`option '--${name}' takes no value, got '${word.slice(equals + 1)}'`)
    } else if (equals < 0) {
      const value = words[i + 1]
      if (value === undefined || (value.startsWith('-') && !/^-\d/.test(value)))
        throw new UsageError(`option '${flag}' needs a value`)
      i++
    } else if (equals === word.length - 1) {
      throw new UsageError(`option '${flag}' needs a value`)
    }
  }
}

function parseBatches(text: string): number[] {
  const batches = text.split(',').map((part) => parseInteger('--batches', part.trim(), 1, 65536))
  if (batches.length > 16) throw new UsageError(`--batches: expected at most 16 sizes, got ${batches.length}`)
  return batches
}
