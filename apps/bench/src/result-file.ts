/** Files that are there whole or not at all: written under another name, then renamed. */
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

/** Creates the folder too. What cannot be written throws, and leaves what was there. */
export function writeWhole(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  const temporary = `${path}.${process.pid}.tmp`
  try {
    writeFileSync(temporary, text)
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

/** A result as its file has it. */
export const resultText = (result: object): string => `${JSON.stringify(result, null, 1)}\n`
