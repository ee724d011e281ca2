// Slices among faults; run by faults.test.ts.
import { Tensor } from '@nexus/native'
import { describeDevice, SliceEnforcer, SliceManager, SlicePartition } from '@nexus/slices'
import {
  arm,
  backTo,
  caught,
  device,
  disarm,
  fate,
  given,
  print,
  run,
  steady,
  timed,
} from '../../core/test/faults/child.mjs'

const description = describeDevice(device)
const portion = Math.ceil(description.minSms / description.granularity) * description.granularity
const partitions = () => ({ partitions: SlicePartition.live })
const equal = {
  name: 'equal',
  decide: ({ load, constraints: { sms } }) => ({ sms: [sms], sliceOf: load.map(() => 0), reason: 'one' }),
}

function make() {
  const enforcer = new SliceEnforcer({ device, mode: 'hardware' })
  const manager = new SliceManager({ device: description, numExperts: 4, policy: equal, enforcer, maxLayouts: 3 })
  const dispose = () => {
    manager.dispose()
    enforcer.dispose()
  }
  return { enforcer, manager, dispose }
}

/** Work on a slice's stream arrives. */
async function works(stream) {
  const tensor = Tensor.zeros([1000], { device, stream })
  try {
    return (await tensor.toArray()).every((value) => value === 0)
  } finally {
    tensor.dispose()
  }
}

await run({
  async unbuilt() {
    const life = async (fault) => {
      const { enforcer, manager, dispose } = make()
      const { plan } = manager
      arm(fault)
      const errors = []
      const error = await caught(() => {
        try {
          manager.allocate({ name: 'other', sms: portion })
        } catch (error) {
          for (let at = error; at !== undefined; at = at.cause) errors.push(at.name)
          throw error
        }
      })
      disarm()
      const kept = manager.plan === plan && enforcer.partition(plan) !== null
      const { failures } = enforcer.stats()
      if (error !== null) manager.allocate({ name: 'other', sms: portion })
      const partition = enforcer.partition(manager.plan)
      const result = {
        error,
        errors,
        kept,
        failures,
        built: partition !== null,
        works: await works(partition.stream('other')),
      }
      dispose()
      return result
    }
    await life('none')
    const before = await steady(partitions)
    return { ...(await life(given.fault)), leaked: await backTo(before, partitions) }
  },

  async unstreamed() {
    const life = async (fault) => {
      const { enforcer, manager, dispose } = make()
      const partition = enforcer.partition(manager.plan)
      arm(fault)
      const error = await caught(() => partition.stream(0))
      disarm()
      const fine = await works(partition.stream(0))
      dispose()
      return { error, works: fine }
    }
    await life('none')
    const before = await steady(partitions)
    return { ...(await life('partition.stream:1:oom')), leaked: await backTo(before, partitions) }
  },

  async manyLayouts() {
    const life = async (rounds) => {
      const { enforcer, manager, dispose } = make()
      manager.allocate({ name: 'other', sms: portion })
      const sizes = Math.floor(description.sms / portion) - 1
      for (let i = 0; i < rounds; i++) {
        manager.resize('other', portion * (1 + (i % Math.max(1, sizes))))
        const stream = enforcer.partition(manager.plan).stream('other')
        Tensor.zeros([1000], { device, stream }).dispose()
        if (i % 20 === 0) await stream.synchronize()
      }
      dispose()
    }
    await life(20)
    const before = await steady(partitions)
    await life(300)
    return { leaked: await backTo(before, partitions), live: SlicePartition.live }
  },

  async broken() {
    const { enforcer, manager, dispose } = make()
    const partition = enforcer.partition(manager.plan)
    await works(partition.stream(0))
    arm('partition.stream:1:device')
    const stream = await caught(() => partition.stream(0, { index: 1 }))
    const allocate = await caught(() => manager.allocate({ name: 'other', sms: portion }))
    const disposal = await caught(dispose)
    for (let i = 0; i < 400 && SlicePartition.live > 0; i++) await new Promise((resolve) => setTimeout(resolve, 5))
    return { stream, allocate, disposal, live: SlicePartition.live }
  },

  async hang() {
    const { enforcer, manager, dispose } = make()
    manager.allocate({ name: 'other', sms: portion })
    const partition = enforcer.partition(manager.plan)
    const [stuck, free] = [partition.stream('other'), partition.stream(0)]
    await works(stuck)
    arm('buffer.allocate:1:hang')
    Tensor.empty([1000], { device, stream: stuck }).dispose()
    disarm()
    const other = await fate(works(free), 5000)
    const ms = await timed(dispose)
    const closed = await fate(partition.closed(), 100)
    const use = await caught(() => partition.stream(0))
    print({ other, quick: ms < 1000, disposed: partition.disposed, closed, use })
    process.exit(0)
  },
})
