/** Where a machine's tune file is, and how it is read and written: as a whole or not at all. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, isAbsolute, join, resolve } from 'node:path'
import { parseTuneFile, type TuneFile, TuneFileError } from './tune-file.js'

/** `NEXUS_TUNE_FILE` when it is this: no table at all, every layer runs by the heuristic. */
export const tuningOff = 'off'

/** Whether `NEXUS_TUNE_FILE` turns tables off. */
export const isTuningOff = (): boolean => process.env.NEXUS_TUNE_FILE === tuningOff

/**
 * `NEXUS_TUNE_FILE`, else one file for each class of devices in the user's cache folder (`$XDG_CACHE_HOME/nexus`, else `~/.cache/nexus`).
 */
export function tuneFilePath(deviceClass: string): string {
  const given = process.env.NEXUS_TUNE_FILE
  if (given !== undefined && given !== '' && given !== tuningOff) return resolve(given)
  return join(cacheFolder(), `tune-${deviceClass.replace(/[^A-Za-z0-9_.]+/g, '-')}.json`)
}

function cacheFolder(): string {
  const base = process.env.XDG_CACHE_HOME
  // The specification: a relative path is to be ignored.
  return join(base !== undefined && isAbsolute(base) ? base : join(homedir(), '.cache'), 'nexus')
}

/** Whether {@link tuneFilePath} can be the path of a file, for any class of devices. */
export function mayHaveTuneFile(): boolean {
  return Boolean(process.env.NEXUS_TUNE_FILE) || existsSync(cacheFolder())
}

const codeOf = (error: unknown): unknown => (error instanceof Error ? Reflect.get(error, 'code') : undefined)

/** @returns `null` where there is no such file. @throws TuneFileError */
export function readTuneFile(file: string): TuneFile | null {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    if (codeOf(cause) === 'ENOENT') return null
    throw new TuneFileError(file, `cannot be read (${String(codeOf(cause) ?? cause)})`, { cause })
  }
  return parseTuneFile(text, file)
}

/** Writes beside it and renames: whoever reads sees the old file or the new one. @throws TuneFileError; the old file stays then */
export function writeTuneFile(file: string, content: TuneFile): void {
  const beside = `${file}.${process.pid}.tmp`
  let made = false
  try {
    mkdirSync(dirname(file), { recursive: true })
    made = true
    writeFileSync(beside, `${JSON.stringify(content, null, 1)}\n`)
    renameSync(beside, file)
  } catch (cause) {
    if (made) rmSync(beside, { force: true })
    throw new TuneFileError(file, `cannot be written (${String(codeOf(cause) ?? cause)})`, { cause })
  }
}
