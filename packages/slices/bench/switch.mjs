// What a change of layout costs the host:   node packages/slices/bench/switch.mjs [EXPERTS] [DEVICE]     (built first: npm run build)
// `update` with a policy that swaps between two layouts that are built, so that every call is a switch: the manager's own work, the policy's taken off
// (it is timed by decision.mjs). `follow`: then also the partition's streams looked up and the experts' table written, as a scheduler does.
// Medians and 99th percentiles. Prints JSON.
import { cpus } from 'node:os'
import { LaneSet, Stream } from '@nexus/native'
import { ExpertProfiler } from '@nexus/profiler'
import { describeDevice, SliceEnforcer, SliceManager } from '../dist/index.js'

const experts = Number(process.argv[2] ?? 256)
const device = process.argv[3] ?? 'cpu'
if (!Number.isInteger(experts) || experts < 3)
  throw new RangeError(`EXPERTS: expected an integer of at least 3, got ${process.argv[2]}`)
const description = describeDevice(device)
const { sms, granularity } = description
const sliceOf = [0, 1].map((turn) => Array.from({ length: experts }, (_, e) => (e + turn) % 3))
const sizes = [0, 1].map((turn) => {
  const small = granularity * Math.max(1, Math.floor(sms / granularity / 4))
  return turn === 0 ? [sms - 2 * small, small, small] : [small, small, sms - 2 * small]
})
const decided = [0, 1].map((turn) => ({ sms: sizes[turn], sliceOf: sliceOf[turn], reason: 'swapped' }))
let turn = 0
let policyNs = 0n
const swap = {
  name: 'swap',
  decide() {
    const begin = process.hrtime.bigint()
    turn = 1 - turn
    const made = decided[turn]
    policyNs = process.hrtime.bigint() - begin
    return made
  },
}

function spread(us) {
  us.sort((a, b) => a - b)
  const at = (part) => Number(us[Math.floor(part * us.length)].toFixed(1))
  return { medianUs: at(0.5), p99Us: at(0.99) }
}

const profiler = new ExpertProfiler({ numExperts: experts })
for (let t = 0; t < 64; t++)
  profiler.record({ counts: Array.from({ length: experts }, (_, e) => 1 + ((e * 7 + t) % 100)) })
const profile = profiler.snapshot()

async function measure(mode) {
  const enforcer = new SliceEnforcer({ device, mode })
  const manager = new SliceManager({ device: description, numExperts: experts, policy: swap, enforcer, dwellSteps: 0 })
  manager.update(profile)
  manager.update(profile)
  const { builds } = enforcer.stats()
  const stream = Stream.create({ device })
  const lanes = new LaneSet({ stream, laneOf: sliceOf[0], lanes: 3, shares: sizes[0] })
  const update = []
  const follow = []
  const before = manager.stats().switches
  const steps = 6000
  for (let step = 0; step < steps; step++) {
    const begin = process.hrtime.bigint()
    const plan = manager.update(profile)
    const updated = process.hrtime.bigint()
    const partition = enforcer.partition(plan)
    const shares = plan.slices.map((slice, i) => {
      partition?.stream(i)
      return slice.grantedSms
    })
    lanes.update({ laneOf: plan.sliceOf, shares })
    const end = process.hrtime.bigint()
    if (step < 1000) continue
    update.push(Number(updated - begin - policyNs) / 1000)
    follow.push(Number(end - updated) / 1000)
    if (step % 256 === 0) await stream.synchronize()
  }
  if (manager.stats().switches - before !== steps) throw new Error('not every update was a switch')
  if (enforcer.stats().builds !== builds) throw new Error('a layout was built in the loop')
  await stream.synchronize()
  lanes.dispose()
  manager.dispose()
  enforcer.dispose()
  return { update: spread(update), follow: spread(follow) }
}

const result = { partitions: await measure('hardware'), cooperative: await measure('cooperative') }
console.log(
  JSON.stringify({ node: process.version, cpu: cpus()[0]?.model ?? null, device, experts, ...result }, null, 2),
)
