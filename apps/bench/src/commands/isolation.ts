/** `nexus-bench isolation` */
import { defineCommand } from 'citty'
import { parseShape } from '../shapes.js'
import { checkedDevice, deliver, deviceArg, number, numbers, outputArgs, progress } from './arguments.js'

const args = {
  decode: { type: 'string', description: 'shape of the decode tenant', default: 'qwen3-30b-a3b' },
  'decode-tokens': { type: 'string', description: 'tokens of a decode step', default: '64' },
  prefill: { type: 'string', description: 'shape of the prefill tenant', default: 'mixtral-8x7b' },
  'prefill-tokens': { type: 'string', description: 'tokens of a prefill step', default: '4096' },
  'decode-sms': {
    type: 'string',
    description: 'SMs of decode in slices, by commas; prefill has the others',
    default: '64,96,112,120,124',
  },
  'read-ahead': {
    type: 'string',
    description: 'slices of decode with a limit of weights under way, SMs:MB by commas, to try besides; 0: none',
    default: '112:10.2,120:11.1,124:14',
  },
  'min-steps': { type: 'string', description: 'decode steps of each arrangement, at least', default: '2000' },
  seconds: { type: 'string', description: 'seconds of each arrangement, at least', default: '4' },
  'p99-bound': {
    type: 'string',
    description: "decode's p99 that auto has to keep, as a multiple of its p99 alone",
    default: '1.15',
  },
  ...deviceArg,
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Two tenants on one device: a decode step that must not be late beside a prefill that takes all it can get, in every way of sharing ' +
  '(alternating, plain streams, priorities, co-resident kernels, slices of several sizes). What the one gains, what the other pays, ' +
  'joules for each token, and what `auto` chooses. Shapes are names or NAME:hidden:inter:experts:topk. ' +
  '\n\nTry: nexus-bench isolation --decode-sms 48 --seconds 1'

function readAhead(text: string): { sms: number; mb: number } {
  const [sms, mb, ...more] = numbersOf(text)
  if (sms === undefined || mb === undefined || more.length > 0 || !Number.isInteger(sms) || sms < 1 || !(mb > 0)) {
    throw new RangeError(`--read-ahead: expected SMs:MB, got '${text}'`)
  }
  return { sms, mb }
}
const numbersOf = (text: string) => text.split(':').map((part) => (part === '' ? Number.NaN : Number(part)))

export default defineCommand({
  meta: {
    name: 'isolation',
    description: 'A decode tenant beside a prefill tenant, in every way of sharing the device',
  },
  args,
  async run({ args: given }) {
    const options = {
      device: checkedDevice(given.device),
      decode: { shape: parseShape(given.decode, 'decode'), tokens: number('decode-tokens', given['decode-tokens']) },
      prefill: {
        shape: parseShape(given.prefill, 'prefill'),
        tokens: number('prefill-tokens', given['prefill-tokens']),
      },
      decodeSms: numbers('decode-sms', given['decode-sms']),
      readAhead: given['read-ahead'] === '0' ? [] : given['read-ahead'].split(',').map(readAhead),
      minSteps: number('min-steps', given['min-steps']),
      seconds: number('seconds', given.seconds, true),
      p99Bound: number('p99-bound', given['p99-bound'], true),
      onProgress: progress,
    }
    const [{ isolationBench }, { isolationTable }] = await Promise.all([
      import('../scheduling/isolation.js'),
      import('../sections/isolation.js'),
    ])
    const result = await isolationBench(options)
    deliver(result, given, () => isolationTable(result))
  },
})
