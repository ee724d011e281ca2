/** `nexus-bench record` */
import { join } from 'node:path'
import { defineCommand } from 'citty'
import { tracesFolder } from '../paths.js'
import { drifts } from '../recording/drift.js'
import { writeWhole } from '../result-file.js'
import { number, oneOf, progress, seed } from './arguments.js'

const args = {
  layer: {
    type: 'string',
    description:
      "'digits' (experts behind a router that has learned the data), the name of a checkpoint of the tests (olmoe, qwen3_moe, qwen2_moe, mixtral, " +
      'deepseek_v3, gpt_oss), or the folder of one of your own; by default all that the project ships, with their drifts',
  },
  drift: {
    type: 'string',
    description: `how the inputs drift, with --layer: ${drifts.join(', ')}; by commas, default all`,
  },
  steps: { type: 'string', description: 'steps of each trace', default: '1024' },
  tokens: { type: 'string', description: 'tokens of each step', default: '2048' },
  experts: { type: 'string', description: "experts of the layer 'digits'", default: '64' },
  topk: { type: 'string', description: "experts of a token in the layer 'digits'", default: '8' },
  seed: { type: 'string', description: 'seed of the drift, of what is drawn and of the router', default: '1' },
  device: { type: 'string', description: 'auto, cpu, cuda or cuda:N', default: 'auto' },
  out: { type: 'string', description: 'folder to write (default: apps/bench/results/traces)', valueHint: 'FOLDER' },
  json: { type: 'boolean', description: 'print what was written as JSON' },
} as const

/** What `--help` says below the options. */
export const details =
  'Records routing traces: a layer routes images of handwritten digits whose mix drifts, and the counts of every step are written, for ' +
  '`nexus-bench policies` and for recordedTrace of @nexus/slices/simulator. The same options give the same counts. ' +
  '\n\nTry: nexus-bench record --layer digits --drift bursts --steps 256 --out traces'

export default defineCommand({
  meta: { name: 'record', description: 'Routing traces of real layers whose inputs drift, for the simulator' },
  args,
  async run({ args: given }) {
    const [{ recordTrace, shippedTraces }, { traceText }] = await Promise.all([
      import('../scheduling/record.js'),
      import('../recording/trace-file.js'),
    ])
    if (given.drift !== undefined && given.layer === undefined) {
      throw new RangeError('--drift: needs --layer; without it the traces that the project ships are recorded')
    }
    const { layer } = given
    const chosen =
      layer === undefined
        ? shippedTraces
        : (given.drift?.split(',') ?? drifts).map((drift) => ({ source: layer, drift: oneOf('drift', drift, drifts) }))
    const options = {
      steps: number('steps', given.steps),
      tokens: number('tokens', given.tokens),
      experts: number('experts', given.experts),
      topK: number('topk', given.topk),
      seed: seed('seed', given.seed),
      device: given.device as 'auto',
      onProgress: progress,
    }
    const folder = given.out ?? tracesFolder
    const written: { name: string; path: string; bytes: number; experts: number; steps: number }[] = []
    for (const each of chosen) {
      const file = await recordTrace({ ...each, ...options })
      const path = join(folder, `${file.name}.json`)
      const text = traceText(file)
      writeWhole(path, text)
      const { name, counts } = file
      written.push({ name, path, bytes: text.length, experts: file.options.experts, steps: counts.length })
      progress(`written: ${path} (${Math.round(text.length / 1024)} KiB)`)
    }
    const lines = written.map((w) => `${w.name}  ${w.steps} steps of ${w.experts} experts, ${w.bytes} bytes`)
    process.stdout.write(given.json ? `${JSON.stringify(written, null, 1)}\n` : `${lines.join('\n')}\n`)
  },
})
