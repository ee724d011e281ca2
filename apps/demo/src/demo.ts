/** The demo: the machine, the proof, the comparison, the digits; then one line that says how it went. */
import { stat } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { resolveDevice, systemInfo } from '@nexus/native'
import type { DemoOptions } from './arguments.js'
import { compareWithBaseline, printComparison } from './comparison.js'
import type { Context } from './context.js'
import { printDigits, routeDigits } from './digits.js'
import { exitCode, UsageError } from './exit.js'
import { machineLines } from './machine.js'
import type { Output } from './output.js'
import { printProof, prove } from './proof.js'
import type { DemoReport } from './report.js'

const assets = new URL('../assets/', import.meta.url)

/** @returns the exit code */
export async function runDemo(
  options: DemoOptions,
  version: string,
  output: Output,
  signal: AbortSignal,
): Promise<number> {
  const start = performance.now()
  if (options.checkpoint !== null) await checkDirectory(options.checkpoint)
  const device = resolveDevice(options.device)
  const system = systemInfo()
  const context: Context = { device, seed: options.seed, output, signal }
  output.print(...machineLines(system, device, output.style))

  const proof = await prove(context, options.checkpoint ?? fileURLToPath(new URL('qwen3_moe', assets)))
  printProof(context, proof)
  const comparison = await compareWithBaseline(context, options.batches, options.runs)
  printComparison(context, comparison)
  const digits = await routeDigits(context, new URL('digits.csv', assets))
  printDigits(context, digits)

  const ok = proof.ok && comparison.ok
  const elapsedMs = performance.now() - start
  const report: DemoReport = {
    schema: 'nexus-demo/report/1',
    version,
    ok,
    device,
    seed: options.seed,
    elapsedMs,
    system,
    proof,
    comparison,
    digits,
  }
  const seconds = `${(elapsedMs / 1000).toFixed(1)} s`
  output.print(
    '',
    ok
      ? output.style.green(`All proofs held, in ${seconds}.`)
      : output.style.red(
          `FAILED after ${seconds}: ${proof.ok ? 'baseline and Nexus differ' : 'the checkpoint proof did not hold'}.`,
        ),
  )
  output.document(report)
  return ok ? exitCode.ok : exitCode.failed
}

async function checkDirectory(directory: string): Promise<void> {
  const stats = await stat(directory).catch(() => null)
  if (!stats?.isDirectory()) throw new UsageError(`--checkpoint: '${directory}' is not a folder`)
}
