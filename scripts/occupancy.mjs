// How many blocks of a kernel fit on an SM at once, without a GPU: the rules of CUDA's own cuda_occupancy.h (in the toolkit's include
// folder; tests/occupancy.test.ts compares with it where there is one) for compute capability 8.0 and 9.0, with the limits of the table
// 'Technical Specifications per Compute Capability' in the CUDA C++ Programming Guide. Clusters are not part of them: of blocks that are
// launched in pairs as many fit only where both find room in one GPC.

const KIB = 1024

/** What an SM has, by compute capability. */
export const limits = {
  '8.0': { sharedBytes: 164 * KIB, sharedBytesPerBlock: 163 * KIB },
  '9.0': { sharedBytes: 228 * KIB, sharedBytesPerBlock: 227 * KIB },
}
/** The same for both. */
const REGISTERS = 65536
const WARPS = 64
const BLOCKS = 32
const THREADS_PER_BLOCK = 1024
/** Registers are given to a warp in this many, and each quarter of an SM has its own quarter of them. */
const REGISTER_UNIT = 256
const QUARTERS = 4
/** Shared memory is given to a block in this many bytes; the system has a kilobyte of each block. */
const SHARED_UNIT = 128
const SHARED_RESERVED = KIB
/** Without asking for more, which launches of more do. */
const SHARED_DEFAULT = 48 * KIB

const roundUp = (value, unit) => Math.ceil(value / unit) * unit

/**
 * @param {{ capability: keyof typeof limits, threads: number, registers: number, sharedBytes: number }} block registers of a thread;
 *   static and dynamic shared memory together
 * @returns {{ blocks: number, warps: number, by: string[] }} blocks and their warps on an SM; what there would have to be more of for another
 *   block. 0 blocks: it cannot be launched.
 */
export function occupancy({ capability, threads, registers, sharedBytes }) {
  const sm = limits[capability]
  if (sm === undefined) {
    throw new RangeError(`capability: expected one of ${Object.keys(limits).join(', ')}, got ${capability}`)
  }
  for (const [name, value, least] of [
    ['threads', threads, 1],
    ['registers', registers, 0],
    ['sharedBytes', sharedBytes, 0],
  ]) {
    if (!Number.isInteger(value) || value < least) {
      throw new RangeError(`${name}: expected an integer of at least ${least}, got ${value}`)
    }
  }
  const warps = Math.ceil(threads / 32)
  const perBlock = sharedBytes > SHARED_DEFAULT ? sm.sharedBytesPerBlock : SHARED_DEFAULT
  const shared = roundUp(sharedBytes + SHARED_RESERVED, SHARED_UNIT)
  const room = {
    threads: threads > THREADS_PER_BLOCK ? 0 : Math.floor(WARPS / warps),
    registers: blocksByRegisters(registers, warps),
    'shared memory': shared > perBlock + SHARED_RESERVED ? 0 : Math.floor(sm.sharedBytes / shared),
    blocks: BLOCKS,
  }
  const blocks = Math.min(...Object.values(room))
  const by = Object.keys(room).filter((name) => room[name] === blocks)
  return { blocks, warps: blocks * warps, by }
}

function blocksByRegisters(registers, warps) {
  if (registers === 0) return BLOCKS
  const perWarp = roundUp(registers * 32, REGISTER_UNIT)
  // The hardware's check of a launch takes it that all quarters get as many warps.
  if (registers > 255 || perWarp * roundUp(warps, QUARTERS) > REGISTERS) return 0
  return Math.floor((Math.floor(REGISTERS / QUARTERS / perWarp) * QUARTERS) / warps)
}
