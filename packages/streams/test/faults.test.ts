// What fails half-way leaves nothing half-made, and the next step is right again.
import { OutOfMemoryError } from '@nexus/native'
import { binding } from '@nexus/native/binding'
import { SlicePartition } from '@nexus/slices'
import { expect, it, onTestFinished } from 'vitest'
import { schedule, type Tenant } from '../src/index.js'
import { onEachDevice, type Problem, planOf, problem, whole } from './support/work.js'

const outOfMemory = () =>
  Object.assign(new Error('no room'), { code: 'ERR_NEXUS_OUT_OF_MEMORY', requested: 1, available: 0 })

/** Puts a fault in front of a function of the addon until the test ends. */
function fault<T extends object, K extends keyof T>(part: T, name: K, fails: () => boolean): void {
  const real = part[name]
  if (typeof real !== 'function') throw new Error(`no function ${String(name)}`)
  const faulty = (...args: unknown[]): unknown => {
    if (fails()) throw outOfMemory()
    return Reflect.apply(real, part, args)
  }
  Reflect.set(part, name, faulty)
  onTestFinished(() => {
    Reflect.set(part, name, real)
  })
}

const tenantOf = ({ experts, x, routed }: Problem): Tenant => ({ name: 'a', experts, x, routed })

onEachDevice('a fault', (device) => {
  const sliceOf = [0, 1, 2, 0, 1, 2]

  it.each(['laneSetCreate', 'partitionStream'] as const)('in %s while a schedule is made', (name) => {
    const work = problem(device)
    const held = planOf(device, 'hardware', 3, sliceOf)
    let broken = true
    let calls = 0
    fault(binding().slices, name, () => broken && calls++ >= (name === 'partitionStream' ? 1 : 0))
    const make = () =>
      schedule(held.plan, { partition: held.partition, tenants: [tenantOf(work), { ...tenantOf(work), name: 'b' }] })
    expect(make).toThrow(OutOfMemoryError)
    broken = false
    const partitions = SlicePartition.live
    const steps = make()
    steps.dispose()
    // Had the failed one kept its hold, the partition would outlive everybody.
    const { partition } = held
    held.dispose()
    expect(partition?.disposed).toBe(true)
    expect(SlicePartition.live).toBeLessThanOrEqual(partitions)
    work.dispose()
  })

  it('in the launch of a lane ends that step with its error, and the next is right', async () => {
    const work = problem(device)
    const expected = await whole(work)
    const held = planOf(device, 'hardware', 3, sliceOf)
    const steps = schedule(held.plan, { partition: held.partition, tenants: [tenantOf(work)] })
    let broken = true
    let calls = 0
    fault(binding().routerKernels, 'groupedMlp', () => broken && calls++ === 1)
    const failed = await steps.run()
    expect(failed.tenants[0]).toMatchObject({ ms: null, error: expect.any(OutOfMemoryError) })
    broken = false
    const { tenants } = await steps.run()
    expect(tenants[0]?.error).toBeNull()
    expect(await (tenants[0]?.value as { toArray(): Promise<unknown> } | undefined)?.toArray()).toEqual(expected)
    steps.dispose()
    held.dispose()
    work.dispose()
  })

  it('in an event ends the run with its error, and the next is right', async () => {
    const work = problem(device)
    const expected = await whole(work)
    const held = planOf(device, 'hardware', 3, sliceOf)
    const steps = schedule(held.plan, { partition: held.partition, tenants: [tenantOf(work)] })
    for (let at = 0; at < 6; at++) {
      let calls = 0
      let broken = true
      fault(binding().native, 'eventCreate', () => broken && calls++ === at)
      const outcome = await steps.run().then(
        ({ tenants }) => tenants[0]?.error ?? null,
        (error: unknown) => error,
      )
      broken = false
      expect(outcome).toBeInstanceOf(OutOfMemoryError)
      const { tenants } = await steps.run()
      expect(tenants[0]?.error).toBeNull()
      expect(await (tenants[0]?.value as { toArray(): Promise<unknown> } | undefined)?.toArray()).toEqual(expected)
    }
    expect(steps.stats().active).toBe(0)
    steps.dispose()
    held.dispose()
    work.dispose()
  })
})
