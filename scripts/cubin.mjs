// What the compiled device code says of its kernels, read from the file itself: cuobjdump is not part of every toolkit, and ptxas tells
// only whoever compiles. A file that links CUDA code keeps it in its section .nv_fatbin, one container after the other; each entry is
// PTX (not read here) or a cubin: an ELF file with a section of attributes, .nv.info, for all kernels and one for each.
// The numbers of the attributes and the layout of the containers are those that cuobjdump prints; NVIDIA documents neither, so what is
// not as expected is an error, not a guess.

const FATBIN_MAGIC = 0xba55ed50
const ENTRY_ELF = 2
// An entry's flags: its data is compressed (LZ4 or, since CUDA 12.4, zstd).
const COMPRESSED = 0x2000n | 0x8000n
const MACHINE_CUDA = 190
const ENTRY_POINT = 0x10 // in a symbol's st_other: a kernel

// Attributes of .nv.info: two bytes of format and number, then a value of 16 bits or, in this format, a size and that many bytes.
const SIZED = 4
const attributes = {
  maxThreads: 0x05,
  frameSize: 0x11,
  registers: 0x2f,
  annotations: 0x55,
}
// The first two bytes of an instruction's 16: EXIT and BPT.TRAP, without a condition.
const LEAVES = [0x794d, 0x795c]
// Of the annotations: an instruction that spills or refills a register. (kind, offset) in 32 bits each.
const SPILL_OR_REFILL = 1

/**
 * @typedef {object} Section
 * @property {string} name
 * @property {number} type
 * @property {number} offset
 * @property {number} size
 * @property {number} link
 */

/**
 * Sections of a little-endian ELF file of 64 bits.
 * @param {Buffer} file
 * @returns {Section[]}
 */
export function sectionsOf(file) {
  if (file.length < 64 || file.toString('latin1', 0, 4) !== '\x7fELF' || file[4] !== 2 || file[5] !== 1) {
    throw new Error('expected a little-endian ELF file of 64 bits')
  }
  const [start, count, names] = [Number(file.readBigUInt64LE(0x28)), file.readUInt16LE(0x3c), file.readUInt16LE(0x3e)]
  const raw = Array.from({ length: count }, (_, i) => {
    const at = start + 64 * i
    return {
      nameAt: file.readUInt32LE(at),
      type: file.readUInt32LE(at + 4),
      offset: Number(file.readBigUInt64LE(at + 24)),
      size: Number(file.readBigUInt64LE(at + 32)),
      link: file.readUInt32LE(at + 40),
    }
  })
  const strings = raw[names]?.offset ?? 0
  return raw.map(({ nameAt, ...section }) => ({ name: stringAt(file, strings + nameAt), ...section }))
}

function stringAt(file, at) {
  return file.toString('latin1', at, file.indexOf(0, at))
}

const bytesOf = (file, { offset, size }) => file.subarray(offset, offset + size)

/**
 * The cubins of a linked file, in its order; none where it has no device code.
 * @param {Buffer} file
 * @returns {Buffer[]}
 */
export function cubinsOf(file) {
  const section = sectionsOf(file).find(({ name }) => name === '.nv_fatbin')
  if (section === undefined) return []
  const cubins = []
  const data = bytesOf(file, section)
  for (let at = 0; at + 16 <= data.length; ) {
    if (data.readUInt32LE(at) === 0) {
      at += 8 // between containers
      continue
    }
    if (data.readUInt32LE(at) !== FATBIN_MAGIC) throw new Error(`.nv_fatbin: no container at byte ${at}`)
    const [header, size] = [data.readUInt16LE(at + 6), Number(data.readBigUInt64LE(at + 8))]
    const end = at + header + size
    for (let entry = at + header; entry < end; ) {
      const [kind, entryHeader] = [data.readUInt16LE(entry), data.readUInt32LE(entry + 4)]
      const entrySize = Number(data.readBigUInt64LE(entry + 8))
      if (kind === ENTRY_ELF) {
        if ((data.readBigUInt64LE(entry + 40) & COMPRESSED) !== 0n) {
          throw new Error('.nv_fatbin: a cubin is compressed; build without nvcc --compress-mode')
        }
        cubins.push(data.subarray(entry + entryHeader, entry + entryHeader + entrySize))
      }
      entry += entryHeader + entrySize
    }
    at = end
  }
  return cubins
}

/**
 * @typedef {object} CompiledKernel
 * @property {string} symbol mangled
 * @property {boolean} empty it ends or traps at once: the kernel is for other architectures
 * @property {number} registers of a thread
 * @property {number | null} maxThreads of a block, by __launch_bounds__; null without
 * @property {number} staticBytes shared memory of a block that the kernel declares with a size
 * @property {boolean} mayShare whether it or another kernel of its file declares any, with or without a size
 * @property {number} stackBytes local memory of a thread: arrays, and what does not fit into registers
 * @property {number} spills instructions that store a register there or load it again, as the compiler marks them
 */

/**
 * Who made a cubin, and for what; null where it does not say: that of CUDA 13 does, that of 12.8 does not.
 * @param {Buffer} cubin
 * @returns {{ arch: string, compiler: string } | null} as in sm_90a, V13.0.88
 */
export function makerOf(cubin) {
  const note = sectionsOf(cubin).find(({ name }) => name === '.note.nv.tkinfo')
  const told = note === undefined ? '' : bytesOf(cubin, note).toString('latin1')
  const [arch, compiler] = [/-arch (sm_\w+)/.exec(told)?.[1], /\bV\d+\.\d+\.\d+/.exec(told)?.[0]]
  return arch === undefined || compiler === undefined ? null : { arch, compiler }
}

/**
 * @param {Buffer} cubin one that says who made it
 * @returns {{ arch: string, compiler: string, kernels: CompiledKernel[] }}
 */
export function readCubin(cubin) {
  const maker = makerOf(cubin)
  if (cubin.readUInt16LE(18) !== MACHINE_CUDA || maker === null) throw new Error('expected a cubin of CUDA 13')
  const sections = sectionsOf(cubin)
  const named = (name) => sections.find((section) => section.name === name)
  // From 9.0 on the system's own kilobyte of every block is counted into what a kernel declares.
  const reserved = Number(/\d+/.exec(maker.arch)?.[0]) >= 90 ? 1024 : 0

  const symbols = named('.symtab')
  const general = named('.nv.info')
  if (symbols === undefined || general === undefined) throw new Error('cubin: .symtab or .nv.info is missing')
  const [registers, frames] = [new Map(), new Map()]
  for (const { number, bytes } of attributesOf(bytesOf(cubin, general))) {
    if (number === attributes.registers) registers.set(bytes.readUInt32LE(0), bytes.readUInt32LE(4))
    if (number === attributes.frameSize) frames.set(bytes.readUInt32LE(0), bytes.readUInt32LE(4))
  }
  const strings = sections[symbols.link]?.offset ?? 0
  const kernels = []
  for (let index = 0; index * 24 < symbols.size; index++) {
    const at = symbols.offset + index * 24
    if ((cubin[at + 5] & ENTRY_POINT) === 0) continue
    const symbol = stringAt(cubin, strings + cubin.readUInt32LE(at))
    const info = named(`.nv.info.${symbol}`)
    const text = named(`.text.${symbol}`)
    if (info === undefined || text === undefined || !registers.has(index))
      throw new Error(`cubin: nothing is said of ${symbol}`)
    const shared = named(`.nv.shared.${symbol}`)
    let [maxThreads, spills] = [null, 0]
    for (const { number, bytes } of attributesOf(bytesOf(cubin, info))) {
      if (number === attributes.maxThreads) {
        maxThreads = bytes.readUInt32LE(0) * bytes.readUInt32LE(4) * bytes.readUInt32LE(8)
      }
      if (number === attributes.annotations) {
        for (let i = 0; i + 8 <= bytes.length && bytes.readUInt32LE(i) === SPILL_OR_REFILL; i += 8) spills++
      }
    }
    kernels.push({
      symbol,
      // Before it at most the stack pointer is set.
      empty: [0, 16].some((at) => LEAVES.includes(cubin.readUInt16LE(text.offset + at))),
      registers: registers.get(index),
      maxThreads,
      staticBytes: shared === undefined ? 0 : Math.max(0, shared.size - reserved),
      mayShare: shared !== undefined,
      stackBytes: frames.get(index) ?? 0,
      spills,
    })
  }
  return { ...maker, kernels }
}

function* attributesOf(info) {
  for (let at = 0; at + 4 <= info.length; ) {
    const [format, number, value] = [info[at], info[at + 1], info.readUInt16LE(at + 2)]
    at += 4
    if (format !== SIZED) continue
    yield { number, bytes: info.subarray(at, at + value) }
    at += value
  }
}
