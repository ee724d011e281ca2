/**
 * Measured choices that come with the package, each file of one class of devices and with its source. Only what was measured, and only where
 * it is not the heuristic's choice: the rest is the heuristic's. None at present: what was measured on an H200 is in the heuristic.
 */
import type { TuneFile } from './tune-file.js'

export const shipped: readonly TuneFile[] = []
