// One scheduled layer with a fault in the native code (NEXUS_FAULT), in a process of its own: what it saw comes out as JSON.
import { describeDevice, MoELayer, policies, SliceManager, Tensor } from '../dist/index.js'

const [scenario, device] = process.argv.slice(2)
const saw = { errors: [], sums: [], failures: null, graphs: null, reason: null, dead: null }
const record = (error) => saw.errors.push({ name: error.name, code: error.code, message: error.message })
const shape = { inputDim: 16, hiddenDim: 8, numExperts: 8, topK: 2, dtype: 'f32', device }
const x = Tensor.randn([9, 16], { device, seed: 1 })

const manager = new SliceManager({ device: describeDevice(device), numExperts: 8, policy: policies.static() })
let layer
try {
  layer = await MoELayer.create({
    ...shape,
    ...(scenario === 'tiered' ? { strategy: 'tiered', slices: { manager, updateEverySteps: 1 } } : {}),
    graphs: { captureAfter: 1 },
  })
} catch (error) {
  record(error)
}
const portion = Math.max(manager.device.granularity, manager.device.minSms)
for (let i = 0; i < 12 && layer; i++) {
  if (i === 6 && scenario === 'tiered') manager.allocate({ name: 'other', sms: portion })
  try {
    const { output } = await layer.forward(x)
    saw.sums.push((await output.toFloat32Array()).reduce((a, b) => a + b, 0))
    output.dispose()
  } catch (error) {
    record(error)
  }
}
try {
  const { strategy, graphs } = layer?.performanceStats() ?? {}
  saw.failures = strategy?.lastFailure ?? null
  saw.graphs = graphs ?? null
  saw.reason = layer?.plan.reason ?? null
} catch (error) {
  saw.dead = { name: error.name, code: error.code, message: error.message }
}
layer?.dispose()
process.stdout.write(JSON.stringify(saw))
