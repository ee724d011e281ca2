/** The help texts. Options come from the definitions that the parser uses, so the two cannot disagree. */
import type { ArgsDef } from 'citty'
import { demoArgs, doctorArgs, type Topic, topArgs } from './arguments.js'
import type { Style } from './style.js'
import { tuneArgs } from './tune-arguments.js'

function optionLines(definitions: ArgsDef, style: Style): string[] {
  const rows = Object.entries(definitions).map(([name, definition]) => {
    const alias = 'alias' in definition && typeof definition.alias === 'string' ? `-${definition.alias}, ` : '    '
    const hint = 'valueHint' in definition && definition.valueHint ? ` <${definition.valueHint}>` : ''
    const initial = definition.default === undefined ? '' : style.dim(` (default ${definition.default})`)
    return { left: `${alias}--${name}${hint}`, right: `${definition.description ?? ''}${initial}` }
  })
  const width = Math.max(...rows.map((row) => row.left.length))
  return rows.map((row) => `  ${style.cyan(row.left.padEnd(width))}  ${row.right}`)
}

export function helpText(topic: Topic, style: Style): string {
  const title = (text: string) => style.bold(text)
  if (topic === 'top') return topHelp(style)
  if (topic === 'tune') return tuneHelp(style)
  if (topic === 'doctor') {
    return [
      'nexus-demo doctor: what this machine offers to Nexus, and what to do about what is missing.',
      '',
      title('Usage'),
      '  nexus-demo doctor [--json]',
      '',
      title('Options'),
      ...optionLines(doctorArgs, style),
      '',
      title('Exit codes'),
      '  0  usable (a CPU is enough)',
      '  2  wrong command line',
      '  3  the native addon cannot be loaded',
      '',
    ].join('\n')
  }
  return [
    'nexus-demo: a Mixture-of-Experts layer on this machine, proved, timed and profiled.',
    '',
    'It loads the MoE layers of a small checkpoint and compares their output with what transformers recorded; times the textbook',
    'loop over experts against the Nexus layer with the same weights; and routes handwritten digits through a layer to show',
    'how unevenly its experts are used. Results go to stdout, progress to stderr.',
    '',
    title('Usage'),
    '  nexus-demo [options]',
    '  nexus-demo doctor [--json]     what this machine has, and what to do about what is missing',
    '  nexus-demo top [options]       experts, slices, streams, graphs and power of a layer, live (nexus-demo top --help)',
    '  nexus-demo tune [options]      the fastest kernel variants for a layer of yours on this machine (nexus-demo tune --help)',
    '',
    title('Options'),
    ...optionLines(demoArgs, style),
    '',
    title('Examples'),
    '  nexus-demo                                 everything, on the GPU where there is one',
    '  nexus-demo --device cpu --runs 5           on the CPU, quickly',
    '  nexus-demo --batches 1,8,64 --seed 7       other batch sizes, other random numbers',
    '  nexus-demo --checkpoint ./Mixtral-tiny     a checkpoint of yours; its output is proved when it has a moe_io.safetensors',
    "  nexus-demo --json | jq '.comparison.rows[].speedup'",
    '',
    title('Exit codes'),
    '  0    everything ran, and every proof held',
    '  1    a proof failed, or the checkpoint could not be read',
    '  2    wrong command line',
    '  3    the device or the native addon is not available (see nexus-demo doctor)',
    '  130  interrupted',
    '',
    title('Environment'),
    '  NO_COLOR, FORCE_COLOR       without colours, with colours even where there is no terminal',
    '  NEXUS_NUM_THREADS           CPU threads to use',
    '  NEXUS_NATIVE_PATH           the native addon to load',
    '',
  ].join('\n')
}

function topHelp(style: Style): string {
  return [
    'nexus-demo top: a layer at work, live: its experts, slices, streams and graphs, and the power of the device.',
    '',
    'The work is skewed, and the skew drifts: which experts are hot changes all the time. On a terminal the view fills the screen',
    'and follows its size; elsewhere it is a block of plain lines at a time. What is not known is a dash, with the reason. It keeps',
    'the device busy for as long as it runs.',
    '',
    style.bold('Usage'),
    '  nexus-demo top [options]',
    '',
    style.bold('Options'),
    ...optionLines(topArgs, style),
    '',
    style.bold('Keys'),
    '  q       ends it: exit code 0',
    '  Ctrl-C  interrupts it: exit code 130',
    '',
    style.bold('Examples'),
    '  nexus-demo top                                     on the GPU where there is one',
    '  nexus-demo top --device cpu --strategy tiered      each slice on workers of its own',
    '  nexus-demo top --seconds 60 > top.txt              a minute of it, as text',
    "  nexus-demo top --json --seconds 5 | jq '.experts.list[0].share'",
    '',
    style.bold('Exit codes'),
    '  0    it was ended, by q or after --seconds',
    '  2    wrong command line',
    '  3    the device or the native addon is not available (see nexus-demo doctor)',
    '  130  interrupted',
    '',
    style.bold('Environment'),
    '  NO_COLOR, FORCE_COLOR       without colours, with colours even where there is no terminal',
    '',
  ].join('\n')
}

function tuneHelp(style: Style): string {
  return [
    'nexus-demo tune: measures every kernel variant of a layer on this machine, and keeps which is the fastest for later layers.',
    '',
    'Each linear layer alone, at each token bucket, by an even and by a skewed load, with weights from memory; then whole steps with the',
    'best variants together. Those whose step beats the default one by more than the noise are kept. The device should have nothing else',
    'to do. Ctrl-C leaves the kept file as it was.',
    '',
    style.bold('Usage'),
    '  nexus-demo tune --model <path> [options]',
    '  nexus-demo tune --shape <hidden:inter:experts:topk> [options]',
    '',
    style.bold('Options'),
    ...optionLines(tuneArgs, style),
    '',
    style.bold('Examples'),
    '  nexus-demo tune --model ./Qwen3-30B-A3B              every bucket to 4096 tokens',
    '  nexus-demo tune --shape 512:1024:8:2 --tokens 64,512',
    '  nexus-demo tune --shape 2048:768:128:8 --dry-run     only to look',
    "  nexus-demo tune --model ./config.json --json | jq '.cells[] | [.linear, .tokens, .chosen, .speedup]'",
    '',
    style.bold('Exit codes'),
    '  0    it was measured and kept',
    '  1    the configuration could not be read, the file not be written, or two variants disagree about a result',
    '  2    wrong command line',
    '  3    the device or the native addon is not available (see nexus-demo doctor)',
    '  130  interrupted; the kept file is as it was',
    '',
    style.bold('Environment'),
    '  NEXUS_TUNE_FILE             the file of kept choices, for this command and for layers; off: none',
    '  XDG_CACHE_HOME              where it is else: nexus/tune-<class of devices>.json in there (default ~/.cache)',
    '',
  ].join('\n')
}
