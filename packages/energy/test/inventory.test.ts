// What can be metered: GPUs, MIG instances, the processor's counters.
import { describe, expect, it } from 'vitest'
import { energyInventory, migInstanceOf, migOf } from '../src/index.js'
import { fakeNvml, fakeRapl, gpu0, gpu1, noFakeNvml } from './support/fakes.js'

describe.skipIf(noFakeNvml)(`inventory${noFakeNvml === null ? '' : ` (${noFakeNvml})`}`, () => {
  it('lists GPUs, three MIG instances with their SMs and memory, and RAPL domains', async () => {
    fakeNvml('devices 2', 'mig 0 0', 'mig 1 3')
    const rapl = fakeRapl()
    rapl.add('intel-rapl:0', 'package-0', 1)
    const { nvml, gpus, rapl: found } = await energyInventory()
    expect(nvml).toMatchObject({ available: true, detail: '999.10.1' })
    expect(gpus.map(({ uuid, migMode }) => [uuid, migMode])).toEqual([
      [gpu0, 'disabled'],
      [gpu1, 'enabled'],
    ])
    expect(gpus[1]?.migInstances).toEqual(
      [1, 2, 3].map((k) => ({
        uuid: `MIG-00000001-0000-4000-8000-00000000000${k}`,
        gpuInstance: k + 2,
        computeInstance: 0,
        multiprocessors: 16 * k,
        memoryBytes: k * 10240 * 2 ** 20,
        detail: '',
      })),
    )
    expect(found).toEqual({ domains: ['package-0'], detail: '' })
  })

  it('finds the MIG instance that a CUDA device is by its UUID, however it is written', async () => {
    fakeNvml('devices 2', 'mig 0 0', 'mig 1 3')
    const inventory = await energyInventory()
    const own = '00000001-0000-4000-8000-000000000002'
    for (const uuid of [`MIG-${own}`, own, `GPU-${own}`, `mig-${own.toUpperCase()}`]) {
      const found = migInstanceOf(uuid, inventory)
      expect(found?.gpu).toBe(inventory.gpus[1])
      expect(found?.instance).toMatchObject({ uuid: `MIG-${own}`, gpuInstance: 4, multiprocessors: 32 })
    }
    for (const uuid of [gpu0, gpu1, 'MIG-00000001-0000-4000-8000-000000000004', '']) {
      expect(migInstanceOf(uuid, inventory)).toBeNull()
    }
    expect(await migOf('cpu')).toBeNull()
  })

  it('what is refused is null, and says so', async () => {
    fakeNvml('mig 0 1', 'status nvmlDeviceGetMemoryInfo 0 4', 'status nvmlDeviceGetAttributes_v2 0 4')
    const [gpu] = (await energyInventory()).gpus
    expect(gpu).toMatchObject({ memoryBytes: null, detail: expect.stringContaining('nvmlDeviceGetMemoryInfo') })
    expect(gpu?.migInstances[0]).toMatchObject({
      multiprocessors: null,
      memoryBytes: null,
      detail: 'nvmlDeviceGetAttributes_v2: Insufficient Permissions (4)',
    })
  })

  it('a driver that hangs is not available, in time', async () => {
    fakeNvml('hang nvmlDeviceGetCount_v2')
    const { nvml, gpus } = await energyInventory({ watchdogMs: 100 })
    expect(nvml).toMatchObject({ available: false, detail: expect.stringContaining('nvmlDeviceGetCount_v2') })
    expect(gpus).toEqual([])
  })

  it('a driver that is not loaded says so', async () => {
    fakeNvml('status nvmlInit_v2 0 9')
    expect((await energyInventory()).nvml).toMatchObject({
      available: false,
      detail: 'nvmlInit_v2: Driver Not Loaded (9)',
    })
  })
})

it('wrong options are named', async () => {
  await expect(energyInventory({ timeout: 1 } as never)).rejects.toThrow(/unknown option 'timeout'/)
  expect(() => migInstanceOf(7 as never, { gpus: [] })).toThrow(/uuid: expected a string, got 7/)
  await expect(migOf('gpu' as never)).rejects.toThrow(TypeError)
  await expect(energyInventory({ watchdogMs: 1 })).rejects.toThrow(/watchdogMs/)
  await expect(energyInventory({ signal: AbortSignal.abort(new Error('no')) })).rejects.toThrow('no')
})
