/** `nexus-bench policies` */
import { defineCommand } from 'citty'
import { calibrationFile, tracesFolder } from '../paths.js'
import { deliver, number, outputArgs, progress, readJson, seed } from './arguments.js'

const args = {
  seeds: { type: 'string', description: 'how many seeds the synthetic traces have', default: '20' },
  'first-seed': {
    type: 'string',
    description: 'the first of them; policies were tuned on none from 9001 on',
    default: '9001',
  },
  clock: {
    type: 'string',
    description:
      "measured steps by which time goes: a result file of 'calibration' (default: apps/bench/results/h200-calibration.json)",
    valueHint: 'FILE',
  },
  traces: {
    type: 'string',
    description: "folder of recorded traces, or 'none' (default: apps/bench/results/traces)",
    valueHint: 'FOLDER',
  },
  recordings: {
    type: 'string',
    description:
      'recordings of each of these layers and drifts: the file, and others by the seeds after its own, for the intervals',
    default: '20',
  },
  ...outputArgs,
} as const

/** What `--help` says below the options. */
export const details =
  'Which policy follows change? Every policy of @nexus/slices through synthetic and recorded routing traces, in time simulated by what steps took on a device: makespan against ' +
  'an oracle that knows each step, regret, and how much is moved, with 95 % intervals. Needs no GPU. ' +
  '\n\nTry: nexus-bench policies --seeds 4 --recordings 1'

export default defineCommand({
  meta: {
    name: 'policies',
    description: 'Every policy through synthetic and recorded traces, in simulated time; needs no GPU',
  },
  args,
  async run({ args: given }) {
    const count = number('seeds', given.seeds)
    const first = seed('first-seed', given['first-seed'])
    const recordings = number('recordings', given.recordings)
    const [{ policiesBench }, { readTraces }, { policyTables }] = await Promise.all([
      import('../scheduling/policies-bench.js'),
      import('../recording/trace-file.js'),
      import('../sections/policies.js'),
    ])
    const folder = given.traces ?? tracesFolder
    const traces = folder === 'none' ? [] : readTraces(folder)
    if (folder !== 'none' && traces.length === 0) throw new RangeError(`--traces: no recorded traces in ${folder}`)
    const result = await policiesBench({
      calibration: readJson('clock', given.clock ?? calibrationFile),
      seeds: Array.from({ length: count }, (_, i) => first + i),
      traces,
      recordings,
      onProgress: progress,
    })
    deliver(result, given, () => policyTables(result))
  },
})
