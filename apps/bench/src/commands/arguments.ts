/** What the commands have in common: checked arguments, and where results go. */
import { readFileSync } from 'node:fs'
import type { ArgsDef } from 'citty'
import { errorText } from '../error-text.js'
import { resultText, writeWhole } from '../result-file.js'

/** Arguments of every benchmark. */
export const outputArgs = {
  out: { type: 'string', description: 'result file to write, whole or not at all', valueHint: 'FILE' },
  json: { type: 'boolean', description: 'print the result as JSON instead of tables' },
} as const satisfies ArgsDef

export const deviceArg = {
  device: { type: 'string', description: 'cuda or cpu', default: 'cuda' },
} as const satisfies ArgsDef

export function checkedDevice(text: string): 'cpu' | 'cuda' {
  if (text !== 'cuda' && text !== 'cpu') throw new RangeError(`--device: '${text}' is not cuda or cpu`)
  return text
}

/** A positive number; an integer unless `fraction`. */
export function number(name: string, text: string, fraction = false): number {
  const value = Number(text)
  if (fraction ? !(value > 0 && Number.isFinite(value)) : !Number.isInteger(value) || value < 1) {
    throw new RangeError(`--${name}: '${text}' is not a positive ${fraction ? 'number' : 'integer'}`)
  }
  return value
}

export const numbers = (name: string, text: string, fraction = false): number[] =>
  text.split(',').map((each) => number(name, each, fraction))

/** A seed: 0 is one. */
export function seed(name: string, text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) {
    throw new RangeError(`--${name}: '${text}' is not an integer from 0 to 2^32 - 1`)
  }
  return value
}

/** One of a few words. */
export function oneOf<T extends string>(name: string, text: string, words: readonly T[]): T {
  const found = words.find((word) => word === text)
  if (found === undefined) throw new RangeError(`--${name}: '${text}' is not one of ${words.join(', ')}`)
  return found
}

/** `--peers` of a command that has PyTorch as its peer, or none. */
export function torchPeer(text: string): boolean {
  if (text !== 'torch' && text !== 'none') throw new RangeError(`--peers: '${text}' is not torch or none`)
  return text === 'torch'
}

/** A file of JSON that an option names. */
export function readJson(option: string, path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    throw new RangeError(`--${option}: ${path}: ${errorText(error)}`)
  }
}

export const progress = (line: string): void => {
  process.stderr.write(`${line}\n`)
}

/** The file first, so that it is there even when nobody reads what is printed. */
export function deliver(result: object, args: { out?: string; json?: boolean }, text: () => string): void {
  if (args.out !== undefined) {
    writeWhole(args.out, resultText(result))
    progress(`written: ${args.out}`)
  }
  process.stdout.write(args.json === true ? resultText(result) : `${text()}\n`)
}

/**
 * Refuses options that a command does not have, by name: a mistyped one would otherwise run for minutes with a default.
 * @throws RangeError
 */
export function checkKnown(raw: readonly string[], args: ArgsDef): void {
  for (const each of raw) {
    if (each === '--') return
    const [, name] = /^--([^=]+)/.exec(each) ?? []
    if (name === undefined || Object.hasOwn(args, name) || name === 'help') continue
    throw new RangeError(
      `--${name}: no such option; there are ${Object.keys(args)
        .map((key) => `--${key}`)
        .join(', ')}`,
    )
  }
}
