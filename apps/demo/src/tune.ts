/** `nexus-demo tune`: which kernel variants are the fastest for a layer on this machine, measured and kept for every later layer. */
import {
  modelShape,
  resolveDevice,
  saveTuning,
  type TunedCell,
  type TunedStep,
  type TuneOptions,
  type TuneReport,
  type TuningInForce,
  tune,
  tuningFor,
} from '@nexus/core'
import { throwIfStopped } from './context.js'
import { CheckpointRefused, exitCode } from './exit.js'
import { table } from './format.js'
import type { Output } from './output.js'
import type { TuneCommandOptions } from './tune-arguments.js'

/** The document of `nexus-demo tune --json`; times in microseconds. */
export interface TuneDocument extends Omit<TuneReport, 'file'> {
  readonly schema: 'nexus-demo/tune/1'
  readonly ok: true
  readonly shape: Partial<TuneOptions>
  /** What was written; `null` in a dry run. */
  readonly saved: { readonly file: string; readonly tuning: TuningInForce } | null
}

/** @returns the exit code */
export async function runTune(options: TuneCommandOptions, output: Output, signal: AbortSignal): Promise<number> {
  const { progress } = output
  const shape = typeof options.of === 'string' ? await shapeOfModel(options.of) : options.of
  const device = resolveDevice(options.device)
  // A kept file that cannot be read is found before a minute is spent.
  if (!options.dryRun) tuningFor(device)
  const { file: found, ...report } = await tune({
    ...shape,
    device,
    seed: options.seed,
    budgetMs: 1000 * options.seconds,
    ...(options.dtype !== null && { dtype: options.dtype }),
    ...(options.tokens !== null && { tokens: options.tokens }),
    signal,
    onProgress: ({ linear, tokens, done, total }) => {
      if (done < total) progress.stage(`${linear}, ${tokens} tokens (${done + 1} of ${total})`)
    },
  })
  progress.clear()
  // Asked to stop in time or not: what was kept before stays.
  throwIfStopped(signal)
  output.print(...text(report, output))
  const to = options.file === null ? {} : { file: options.file }
  const saved = options.dryRun ? null : saveTuning({ ...report, file: found }, device, to)
  output.print(...(saved === null ? ['A dry run: nothing was written.'] : savedText(saved)))
  const document: TuneDocument = { schema: 'nexus-demo/tune/1', ok: true, shape, ...report, saved }
  output.document(document)
  return exitCode.ok
}

async function shapeOfModel(path: string) {
  try {
    return await modelShape(path)
  } catch (error) {
    throw error instanceof Error ? new CheckpointRefused(error) : error
  }
}

const us = (value: number): string => (value < 100 ? value.toFixed(2) : value.toFixed(0))

function text(report: Omit<TuneReport, 'file'>, { style }: Output): string[] {
  const { cells, steps, invariant, skipped, device, elapsedMs } = report
  const lines = [
    `${style.bold(device.device)} (${device.deviceClass}), ${(elapsedMs / 1e3).toFixed(1)} s. Medians in microseconds, by an even load and by a skewed one.`,
    '',
    ...table(
      [
        { title: 'linear layer', align: 'left' },
        { title: 'tokens' },
        { title: 'runs', align: 'left' },
        { title: 'even' },
        { title: 'skewed' },
        { title: 'instead of', align: 'left' },
        { title: 'fastest alone', align: 'left' },
        { title: 'batch-invariant', align: 'left' },
      ],
      cells.map((cell) => row(cell, style.green)),
      style.dim,
    ),
    '',
  ]
  if (cells.some(({ fusedStep }) => fusedStep))
    lines.push('fused steps: these run as kernels for the step as a whole, which only the whole steps below have.', '')
  if (steps.length > 0) {
    lines.push(
      "Whole steps of the layer, recorded: a pair of variants that is faster here than the heuristic's is kept.",
      '',
      ...table(
        [
          { title: 'step', align: 'left' },
          { title: 'tokens' },
          { title: 'runs', align: 'left' },
          { title: 'even' },
          { title: 'skewed' },
          { title: 'heuristic even' },
          { title: 'heuristic skewed' },
          { title: 'pairs' },
          { title: 'speedup' },
          { title: 'noise' },
        ],
        steps.map((step) => stepRow(step, style.green)),
        style.dim,
      ),
      '',
    )
  }
  for (const { linear, order, meanPrice } of invariant)
    lines.push(`${linear}: batch-invariant keeps to ${order}, x${meanPrice.toFixed(2)} on the mean over these buckets.`)
  if (skipped.length > 0) {
    const names = skipped.map(({ linear, tokens }) => `${linear} at ${tokens}`).join(', ')
    lines.push(
      style.yellow(`Not measured, the time was up: ${names}. --seconds gives it more. Without a step nothing is kept.`),
    )
  }
  return lines
}

function row(
  { linear, tokens, candidates, chosen, heuristic, fusedStep, noise, invariantPrice }: TunedCell,
  paint: (s: string) => string,
) {
  const own = candidates.find(({ name }) => name === chosen)
  const other = chosen !== heuristic
  const free = invariantPrice !== null && invariantPrice <= 1 + (noise ?? 0)
  const alone = [...candidates].sort((a, b) => a.evenUs * a.skewedUs - b.evenUs * b.skewedUs)[0]
  return [
    linear,
    `${tokens}`,
    other ? { text: chosen, paint } : chosen,
    us(own?.evenUs ?? Number.NaN),
    us(own?.skewedUs ?? Number.NaN),
    other ? heuristic : fusedStep ? 'fused steps' : candidates.length === 1 ? 'the only one' : '',
    alone === undefined || alone.name === chosen ? '' : alone.name,
    invariantPrice === null ? '-' : free ? 'free' : `x${invariantPrice.toFixed(2)}`,
  ]
}

function stepRow(
  { mlp, tokens, pairs, heuristic, chosen, speedup, noise }: TunedStep,
  paint: (s: string) => string,
): (string | { text: string; paint: (s: string) => string })[] {
  const timesOf = (pair: readonly string[]) => {
    const times = pairs.find(({ variants }) => variants.join() === pair.join())
    return [us(times?.evenUs ?? Number.NaN), us(times?.skewedUs ?? Number.NaN)]
  }
  const other = chosen.join() !== heuristic.join()
  const text = chosen.join(' + ')
  return [
    mlp,
    `${tokens}`,
    other ? { text, paint } : text,
    ...timesOf(chosen),
    ...(other ? timesOf(heuristic) : ['', '']),
    `${pairs.length}`,
    other ? `x${speedup.toFixed(2)}` : '',
    `${(100 * noise).toFixed(1)} %`,
  ]
}

function savedText({ file, tuning }: NonNullable<TuneDocument['saved']>): string[] {
  const used = tuning.sources.includes(file)
  const reason = tuning.ignored.find(({ source }) => source === file)?.reason ?? 'it is not the file that layers read'
  return [
    `Kept in ${file}.`,
    used
      ? `Layers made from now on use it (${tuning.linears} linear layers, ${tuning.hash}).`
      : `Layers do not use it: ${reason}. NEXUS_TUNE_FILE names the one that they read.`,
  ]
}
