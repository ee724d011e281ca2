// How long a policy takes to decide:   node packages/slices/bench/decision.mjs [EXPERTS]     (built first: npm run build)
// Medians and 99th percentiles over decisions on different loads, each policy going on from its own decision. Prints JSON.
import { cpus } from 'node:os'
import { decide, gatedExpertCost, h200, hopperTiles, policies, tileCost } from '../dist/index.js'

const experts = Number(process.argv[2] ?? 256)
if (!Number.isInteger(experts) || experts < 1)
  throw new RangeError(`EXPERTS: expected a positive integer, got ${process.argv[2]}`)
const linears = [
  { columns: 1536, written: 768, depth: 2048 },
  { columns: 2048, written: 2048, depth: 768 },
]
const models = hopperTiles(h200, { numExperts: experts, linears })
const sum = (values) => values.reduce((total, x) => total + x, 0)
const costs = {
  'by bytes and operations': () => gatedCost,
  'by tiles': (load) => tileCost(models(sum(load))),
}
const gatedCost = gatedExpertCost(h200, { inputDim: 2048, hiddenDim: 768 })
const constraints = { sms: 132, granularity: 8, minSms: 8, slices: 3, dwellSteps: 8, switchUs: 3 }
let state = 1
const next = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 2 ** 32
}
const loads = Array.from({ length: 64 }, () => Array.from({ length: experts }, () => 4000 * next() ** 4))
const temperatures = new Array(experts).fill('unknown')

function snapshot(step, current, costOf) {
  return {
    step,
    load: loads[step % 64],
    temperatures,
    forecast: { method: 'trend', counts: loads[(step + 1) % 64], score: 0.8, horizonSteps: 8 },
    current,
    utilization: current?.sms.map((_, s) => 1 / (1 + ((s + step) % 3))),
    constraints,
    cost: costOf(loads[step % 64]),
  }
}

function time(policy, guarded, costOf) {
  let current = null
  const us = []
  for (let step = 0; step < 6000; step++) {
    const given = snapshot(step, current, costOf)
    const begin = process.hrtime.bigint()
    const { sms, sliceOf } = guarded ? decide(policy, given) : policy.decide(given)
    const end = process.hrtime.bigint()
    if (step >= 1000) us.push(Number(end - begin) / 1000)
    current = { sms, sliceOf, sinceStep: step - 8 }
  }
  us.sort((a, b) => a - b)
  const at = (part) => Number(us[Math.floor(part * us.length)].toFixed(1))
  return { medianUs: at(0.5), p99Us: at(0.99) }
}

const power = { idleWatts: 107, joulesPerByte: 1.16e-10, joulesPerFlop: 9e-13, smWatts: 0.3 }
const list = Object.entries(policies).map(([name, make]) => [name, make()])
list.push(['adaptive by joules', policies.adaptive({ objective: 'joules', power, latencyBoundUs: 2000 })])
const decisions = Object.fromEntries(
  Object.entries(costs).map(([how, costOf]) => {
    const times = list.map(([name, policy]) => {
      return [name, { alone: time(policy, false, costOf), guarded: time(policy, true, costOf) }]
    })
    return [how, Object.fromEntries(times)]
  }),
)
console.log(JSON.stringify({ node: process.version, cpu: cpus()[0]?.model ?? null, experts, decisions }, null, 2))
