/** From a measurement to what is in force: the device's tune file, then the table of layers made from now on. */
import type { DeviceName } from '@nexus/native'
import { reasonToIgnore, reloadTuning, type TuningInForce } from './in-force.js'
import type { TuneReport } from './report.js'
import { isTuningOff, readTuneFile, tuneFilePath, writeTuneFile } from './store.js'
import { mergeTuneFiles, TuneFileError } from './tune-file.js'

/** Options of {@link saveTuning}. */
export interface SaveTuningOptions {
  /** @default `NEXUS_TUNE_FILE`, else the device's file in the user's cache folder */
  readonly file?: string
}

/**
 * Adds what `tune` found to the tune file, which keeps the other layers of the same device and version; a file of another device or version
 * is replaced. Where it is the process's own file, layers made from now on take it up; those that exist keep what they have.
 * @returns where it was written, and what is in force now
 * @throws TuneFileError when the file cannot be written, or is there and not a tune file; the old one stays then
 */
export function saveTuning(
  report: TuneReport,
  device: DeviceName,
  { file }: SaveTuningOptions = {},
): { readonly file: string; readonly tuning: TuningInForce } {
  if (file === undefined && isTuningOff())
    throw new TuneFileError('NEXUS_TUNE_FILE', "is 'off': name a file to write to")
  const path = file ?? tuneFilePath(report.device.deviceClass)
  const before = readTuneFile(path)
  const usable = before !== null && reasonToIgnore(before, report.device) === null
  writeTuneFile(path, usable ? mergeTuneFiles(before, report.file) : report.file)
  return { file: path, tuning: reloadTuning(device) }
}
