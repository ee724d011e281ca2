/**
 * Which measured choices are in force in this process: what is shipped for the device, then the user's own file over it. They are read when
 * the first layer is made on a device, and a layer keeps those that were in force when it was made. A file that is not of this device or
 * this version is left alone, with the reason.
 */
import { createHash } from 'node:crypto'
import { type DeviceName, systemInfo } from '@nexus/native'
import { type binding, call, deviceIndex, dtypeCode, nativeVersion } from '../native.js'
import { shipped } from './shipped.js'
import { isTuningOff, mayHaveTuneFile, readTuneFile, tuneFilePath } from './store.js'
import { mergeTuneFiles, type TunedLinear, type TuneFile } from './tune-file.js'

/** The measured choices of a layer: part of what decides its bits. */
export interface TuningInForce {
  /** Of all choices, 16 hexadecimal digits: the same hash, the same choices. `null`: there are none, the heuristic chooses. */
  readonly hash: string | null
  /** Linear layers that have measured choices. */
  readonly linears: number
  /** Where they come from: 'shipped', and the user's file. */
  readonly sources: readonly string[]
  /** What was not used, and why. */
  readonly ignored: readonly { readonly source: string; readonly reason: string }[]
}

/** The device as a tune file names it. */
export interface TuneDevice {
  readonly deviceClass: string
  readonly device: string
  readonly driver: string | null
}

export function tuneDevice(device: DeviceName): TuneDevice {
  const deviceClass = call((b) => b.routerKernels.deviceClass(deviceIndex(device)))
  const machine = systemInfo().machine
  const gpu = machine?.cuda.devices.find((info) => info.device === device)
  if (gpu === undefined) return { deviceClass, device: machine?.cpu.name ?? device, driver: null }
  return { deviceClass, device: gpu.name, driver: machine?.cuda.driverVersion ?? null }
}

/** What native layers take up when they are made, by classes of devices that have a table. */
const given = new Map<string, NativeTable>()
const inForce = new Map<string, TuningInForce>()

/**
 * Reads and puts in force what there is for the device, once in a process and value of `NEXUS_TUNE_FILE`.
 * @throws TuneFileError when the user's file is not a tune file
 */
export function tuningFor(device: DeviceName): TuningInForce {
  const place = `${device} ${process.env.NEXUS_TUNE_FILE ?? ''}`
  const known = inForce.get(place)
  if (known !== undefined) return known
  inForce.clear()
  const found = load(device)
  inForce.set(place, found)
  return found
}

/** Reads again what there is, for layers made from now on; those that exist keep theirs. @throws as {@link tuningFor} */
export function reloadTuning(device: DeviceName): TuningInForce {
  inForce.clear()
  return tuningFor(device)
}

function load(device: DeviceName): TuningInForce {
  const ignored: { source: string; reason: string }[] = []
  if (isTuningOff()) ignored.push({ source: 'NEXUS_TUNE_FILE', reason: "it is 'off'" })
  // Most processes have no table: they need not ask what the device is.
  if (isTuningOff() || !(mayBeShipped(device) || mayHaveTuneFile())) {
    for (const deviceClass of [...given.keys()]) putInForce(deviceClass, null)
    return { hash: null, linears: 0, sources: [], ignored }
  }
  const deviceClass = call((b) => b.routerKernels.deviceClass(deviceIndex(device)))
  // Shipped tables are of this version by being shipped; a variant in them that is gone is passed over.
  const files = shipped.filter((file) => file.deviceClass === deviceClass)
  const sources = files.map(() => 'shipped')
  const path = tuneFilePath(deviceClass)
  const own = readTuneFile(path)
  const reason = own && reasonToIgnore(own, tuneDevice(device))
  if (reason !== null) {
    ignored.push({ source: path, reason })
  } else if (own !== null) {
    files.push(own)
    sources.push(path)
  }
  const table = files.length === 0 ? null : files.reduce(mergeTuneFiles)
  return { hash: putInForce(deviceClass, table), linears: table?.linears.length ?? 0, sources, ignored }
}

const mayBeShipped = (device: DeviceName): boolean =>
  shipped.some(({ deviceClass }) => deviceClass.startsWith('cpu/') === (device === 'cpu'))

/** `null`: it may be used. Another driver is no reason: the kernels are the same. */
export function reasonToIgnore(file: TuneFile, { deviceClass, device }: TuneDevice): string | null {
  if (file.deviceClass !== deviceClass) return `it is for ${file.deviceClass}, this device is ${deviceClass}`
  if (file.device !== device) return `it was measured on '${file.device}', this device is '${device}'`
  const version = nativeVersion()
  if (file.nexus !== version) return `it was measured with version ${file.nexus}, this is ${version}: tune again`
  return null
}

/** @returns the hash of what is in force now */
function putInForce(deviceClass: string, table: TuneFile | null): string | null {
  if (table === null) {
    given.delete(deviceClass)
    call((b) => b.routerKernels.setVariantTable(deviceClass, null, []))
    return null
  }
  const { choices, orders } = nativeTable(table.linears)
  call((b) => b.routerKernels.setVariantTable(deviceClass, choices, orders))
  given.set(deviceClass, { choices, orders })
  return createHash('sha256')
    .update(JSON.stringify([choices, orders]))
    .digest('hex')
    .slice(0, 16)
}

type SetTable = ReturnType<typeof binding>['routerKernels']['setVariantTable']

/** A table as the addon takes it. */
interface NativeTable {
  readonly choices: NonNullable<Parameters<SetTable>[1]>
  readonly orders: Parameters<SetTable>[2]
}

type Choices = Pick<TunedLinear, 'dtype' | 'numExperts' | 'k' | 'n' | 'gated' | 'order'> & {
  readonly rows: readonly Pick<TunedLinear['rows'][number], 'rows' | 'variants'>[]
}

function nativeTable(linears: readonly Choices[]): NativeTable {
  const keyed = linears.map((linear) => {
    const { numExperts: experts, k, n, gated } = linear
    return { linear, key: { dtype: dtypeCode[linear.dtype], experts, k, n, gated } }
  })
  const choices = keyed.flatMap(({ linear, key }) =>
    linear.rows.map(({ rows, variants }) => ({ ...key, rows, variants })),
  )
  const orders = keyed.flatMap(({ linear, key }) => (linear.order === null ? [] : [{ ...key, order: linear.order }]))
  return { choices, orders }
}

/**
 * Runs `make` with these choices in force and no others; afterwards it is as before. `make` must be synchronous: nobody else's layer is made
 * meanwhile.
 */
export function withChoices<T>(deviceClass: string, linears: readonly Choices[], make: () => T): T {
  const { choices, orders } = nativeTable(linears)
  const before = given.get(deviceClass)
  call((b) => b.routerKernels.setVariantTable(deviceClass, choices, orders))
  try {
    return make()
  } finally {
    call((b) => b.routerKernels.setVariantTable(deviceClass, before?.choices ?? null, before?.orders ?? []))
  }
}
