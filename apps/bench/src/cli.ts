/**
 * `nexus-bench`: benchmarks with their peers. Results on stdout (a table, or JSON with --json), progress on stderr. Each command loads what
 * it measures with when it runs, so that one can be used where another cannot. Exit code 2 is for the command line, 1 for all else.
 */
import { type CommandDef, defineCommand, renderUsage, runMain } from 'citty'
import { checkKnown } from './commands/arguments.js'
import { errorText } from './error-text.js'

const details = new Map<CommandDef, string>()

/** A command whose options are checked by name and whose errors are one line each. */
async function load(module: Promise<{ readonly default: unknown; readonly details?: string }>): Promise<CommandDef> {
  const loaded = await module
  const command = loaded.default as CommandDef
  const args = (typeof command.args === 'function' ? await command.args() : await command.args) ?? {}
  const wrapped: CommandDef = {
    ...command,
    async run(context) {
      try {
        checkKnown(context.rawArgs, args)
        await command.run?.(context)
      } catch (error) {
        const message = errorText(error)
        process.stderr.write(`nexus-bench: ${message}\n`)
        process.exitCode = message.startsWith('--') ? 2 : 1
      }
    },
  }
  if (loaded.details !== undefined) details.set(wrapped, loaded.details)
  return wrapped
}

// Heard between two turns of the event loop, never in the middle of writing a file; the second one ends the process at once.
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}

const main = defineCommand({
  meta: { name: 'nexus-bench', description: 'Benchmarks of Nexus beside its peers, in the same run' },
  subCommands: {
    layer: () => load(import('./commands/layer.js')),
    router: () => load(import('./commands/router.js')),
    kernels: () => load(import('./commands/kernels.js')),
    ablation: () => load(import('./commands/ablation.js')),
    'slice-cost': () => load(import('./commands/slice-cost.js')),
    isolation: () => load(import('./commands/isolation.js')),
    skew: () => load(import('./commands/skew.js')),
    control: () => load(import('./commands/control.js')),
    calibration: () => load(import('./commands/calibration.js')),
    float32: () => load(import('./commands/float32.js')),
    tuned: () => load(import('./commands/tuned.js')),
    'start-up': () => load(import('./commands/start-up.js')),
    endurance: () => load(import('./commands/endurance.js')),
    record: () => load(import('./commands/record.js')),
    policies: () => load(import('./commands/policies.js')),
    cpu: () => load(import('./commands/cpu.js')),
    docs: () => load(import('./commands/docs.js')),
  },
})

await runMain(main, {
  async showUsage(command, parent) {
    const more = details.get(command as CommandDef)
    process.stdout.write(`${await renderUsage(command, parent)}\n${more === undefined ? '' : `\n${more}\n\n`}`)
  },
})
