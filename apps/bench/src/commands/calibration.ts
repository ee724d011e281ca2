/** `nexus-bench calibration` */
import { defineCommand } from 'citty'
import { parseShapes } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress, readJson } from './arguments.js'

const args = {
  shapes: { type: 'string', description: 'shapes, by commas', default: 'qwen3-30b-a3b,olmoe-1b-7b' },
  tokens: { type: 'string', description: 'tokens of a step, by commas', default: '8,64,256,1024,4096' },
  skews: { type: 'string', description: "standard deviations of the experts' logit bias, by commas", default: '0,1.5' },
  parts: {
    type: 'string',
    description: 'parts of the device that the first slice has, by commas',
    default: '0.18,0.3,0.42,0.55,0.67,0.79',
  },
  arranged: {
    type: 'string',
    description: 'measure three slices as well, as policies arrange them by what was fitted to this result file',
    valueHint: 'FILE',
  },
  samples: { type: 'string', description: 'steps that each median is of', default: '100' },
  'measure-only': {
    type: 'boolean',
    description: 'fit no models to what was measured: --from does so later, without the device',
  },
  from: {
    type: 'string',
    description: 'measure nothing: fit anew to the measurements of this result file of an H200',
    valueHint: 'FILE',
  },
  again: {
    type: 'string',
    description:
      'with --from: result files of other runs of the same steps, by commas; a step is then the mean of its runs',
    valueHint: 'FILES',
  },
  unseen: {
    type: 'string',
    description: "with --from: hold the simulator's clock against the steps of this result file as well",
    valueHint: 'FILE',
  },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Step times by shape, load and layout, and the models fitted to them: how far the simulator is from this device, on steps that the ' +
  'fit did not see. Every shape with every token count, skew and layout is a step.' +
  '\n\nTry: nexus-bench calibration --shapes olmoe-1b-7b --tokens 64 --samples 100' +
  '\n     nexus-bench calibration --from apps/bench/results/h200-calibration.json'

export default defineCommand({
  meta: { name: 'calibration', description: 'Step times by shape, load and layout, and models fitted to them' },
  args,
  async run({ args: given }) {
    if (given.from !== undefined) {
      const [{ meanOf, refit }, { calibrationSection }, { h200 }] = await Promise.all([
        import('../scheduling/calibration.js'),
        import('../sections/calibration.js'),
        import('@nexus/slices'),
      ])
      const other = given.unseen === undefined ? undefined : readJson('unseen', given.unseen)
      const from = readJson('from', given.from)
      const again = given.again?.split(',').map((file) => readJson('again', file))
      const result = refit(again ? meanOf(from, again) : from, h200, progress, other)
      return deliver(result, given, () => calibrationSection('calibration', result))
    }
    for (const name of ['unseen', 'again'] as const) {
      if (given[name] !== undefined) throw new RangeError(`--${name}: needs --from`)
    }
    const parts = numbers('parts', given.parts, true)
    for (const part of parts) if (part >= 1) throw new RangeError(`--parts: ${part} is not below 1`)
    const shapes = parseShapes(given.shapes)
    const [{ calibrationBench, checkedFile }, { clocksOf }, { calibrationSection }] = await Promise.all([
      import('../scheduling/calibration.js'),
      import('../scheduling/clocks.js'),
      import('../sections/calibration.js'),
    ])
    const names = shapes.map(({ name }) => name)
    const options = {
      device: checkedDevice(given.device),
      shapes,
      tokens: numbers('tokens', given.tokens),
      skews: given.skews.split(',').map((text) => (Number(text) === 0 ? 0 : number('skews', text, true))),
      parts,
      arranged: given.arranged === undefined ? [] : clocksOf(checkedFile(readJson('arranged', given.arranged)), names),
      samples: number('samples', given.samples),
      fit: given['measure-only'] !== true,
      onProgress: progress,
    }
    const result = await calibrationBench(options)
    deliver(result, given, () => calibrationSection('calibration', result))
  },
})
