/** The examples as programs, on the GPU where there is one: what they try, what they measure, and what they decide. */
import { parseArgs } from 'node:util'
import { EnergyMonitor } from '@nexus/energy'
import { type DeviceName, resolveDevice, Tensor } from '@nexus/native'
import { describeDevice } from '@nexus/slices'
import { energyFirst } from './energy-first.js'
import { fakeGpu, fakeGpuUuid, noFakeGpu } from './fake-gpu.js'
import { latencyBounded } from './latency-bounded.js'
import { makeLayer, wholeStep } from './layer.js'

const usage = `usage: node apps/examples/src/run.mjs energy-first|latency-bounded [--device cpu|cuda] [--bound MS]
`
const print = (line: string) => process.stdout.write(`${line}\n`)
const shape = { numExperts: 16, topK: 2, inputDim: 256, hiddenDim: 512 } as const

async function milliseconds(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await work()
  return performance.now() - start
}

/** Twice what a step takes undivided: the fastest of a few, so that a busy machine does not loosen it. */
async function usualBound(step: () => Tensor): Promise<number> {
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < 10; i++) {
    const run = async () => {
      using y = step()
      await y.toFloat32Array()
    }
    least = Math.min(least, await milliseconds(run))
  }
  return 2 * least
}

async function runEnergyFirst(device: DeviceName, bound: number | null): Promise<void> {
  const { sms, granularity } = describeDevice(device)
  const layer = makeLayer(device, shape)
  const x = Tensor.randn([64, shape.inputDim], { dtype: layer.dtype, device, seed: 7 })
  const boundMs = bound ?? (await usualBound(() => wholeStep(layer, x)))
  const portions = Math.floor(sms / granularity)
  const idleSms = [0.25, 0.5, 0.75].map((part) => Math.floor(part * portions) * granularity)
  const gpu = device === 'cpu' ? fakeGpu() : null
  const watts = (idle: number) => 60 + 15 * (sms - idle)
  if (gpu !== null) {
    gpu.watts(watts(0))
    print(
      `There is no GPU to be metered: a stand-in for NVML draws 60 W, and 15 W more for each of ${sms} workers in use.`,
    )
  }
  const monitor = new EnergyMonitor(gpu ? { device: fakeGpuUuid, intervalMs: 10 } : { device })
  let tried = 0
  const meter: Pick<EnergyMonitor, 'measure'> = {
    measure: (fn, options) => {
      // A real GPU's power follows its work by itself.
      gpu?.watts(watts([0, ...idleSms][tried++] ?? 0))
      return monitor.measure(fn, options)
    },
  }
  const found = await energyFirst({ ...layer, x }, { monitor: meter, idleSms, boundMs, windowMs: 1500 })
  print(`A step has to end within ${boundMs.toFixed(2)} ms.`)
  for (const trial of found.trials) {
    const energy = trial.joules === null ? `joules unknown: ${trial.reason}` : `${(1e3 * trial.joules).toFixed(1)} mJ`
    const mark = trial === found.chosen ? '  <- chosen' : trial.ms > boundMs ? '  (too slow)' : ''
    print(`${String(trial.idleSms).padStart(4)} idle  ${trial.ms.toFixed(2).padStart(8)} ms  ${energy}${mark}`)
  }
  print(`From now on: ${found.plan.key}`)
  found.dispose()
  monitor.dispose()
  gpu?.dispose()
  x.dispose()
  layer.dispose()
}

async function runLatencyBounded(device: DeviceName, bound: number | null): Promise<void> {
  const [decode, prefill] = [makeLayer(device, shape), makeLayer(device, { ...shape, seed: 1 })]
  const x = Tensor.randn([8, shape.inputDim], { dtype: decode.dtype, device, seed: 7 })
  const many = Tensor.randn([512, shape.inputDim], { dtype: decode.dtype, device, seed: 8 })
  const routed = prefill.router.route(many)
  const boundMs = bound ?? (await usualBound(() => wholeStep(decode, x)))
  const tenants = [
    { name: 'bounded', enqueue: (stream: Parameters<typeof wholeStep>[2]) => wholeStep(decode, x, stream) },
    { name: 'prefill', experts: prefill.experts, x: many, routed },
  ]
  const scheduler = latencyBounded(device, shape.numExperts, tenants, { boundMs, windowSteps: 100 })
  print(`8 tokens a step, whose p99 is to be within ${boundMs.toFixed(2)} ms, beside 512 tokens a step.`)
  let prefillSteps = 0
  let running = true
  const busy = (async () => {
    while (running) {
      using step = scheduler.tenant('prefill').enqueue()
      await step.done()
      prefillSteps++
    }
  })()
  for (let window = 0; window < 20; window++) {
    const { sms } = scheduler.state()
    const before = prefillSteps
    const ms = await milliseconds(async () => {
      for (let i = 0; i < 100; i++) ((await scheduler.step()) as Tensor).dispose()
    })
    const { p99Ms, sms: next } = scheduler.state()
    const rate = (1000 * (prefillSteps - before)) / ms
    const move = next === sms ? '' : `  -> ${next}`
    print(
      `${String(sms).padStart(4)} SMs  p99 ${(p99Ms ?? 0).toFixed(2).padStart(7)} ms  prefill ${rate.toFixed(0)} steps/s${move}`,
    )
  }
  const { p99Ms } = scheduler.state()
  if (p99Ms !== null && p99Ms > boundMs) {
    const [slice] = scheduler.manager.plan.slices.filter((each) => each.name === 'bounded')
    print(`The bound is not met. The slice is ${slice?.enforcement}: ${slice?.enforcementReason}`)
  }
  running = false
  await busy
  scheduler.dispose()
  for (const part of [x, many, routed, decode, prefill]) part.dispose()
}

/** @returns the exit code */
export async function main(words: readonly string[]): Promise<number> {
  const options = { device: { type: 'string', default: 'auto' }, bound: { type: 'string' } } as const
  const { values, positionals } = parseArgs({ args: [...words], options, allowPositionals: true })
  const bound = values.bound === undefined ? null : Number(values.bound)
  const [name] = positionals
  if (
    (name !== 'energy-first' && name !== 'latency-bounded') ||
    positionals.length > 1 ||
    !(bound === null || bound > 0)
  ) {
    process.stderr.write(usage)
    return 2
  }
  const device = resolveDevice(values.device as DeviceName)
  if (name === 'latency-bounded') await runLatencyBounded(device, bound)
  else if (device === 'cpu' && noFakeGpu !== null) {
    process.stderr.write(`${noFakeGpu}; npm run build builds it\n`)
    return 3
  } else await runEnergyFirst(device, bound)
  return 0
}
