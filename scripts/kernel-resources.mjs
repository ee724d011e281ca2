// Registers, shared memory, stack, spills and occupancy of every CUDA kernel, from the addon as it was built:
//   node scripts/kernel-resources.mjs            writes docs/kernels/resources.md
//   node scripts/kernel-resources.mjs --check    fails on a spill, and where the page is not that of this addon
// Another compiler gives other figures: a page that another one made is not compared. Without device code of
// CUDA 13 or nvcc: exit code 75.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, realpathSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root } from './child.mjs'
import { cubinsOf, makerOf, readCubin } from './cubin.mjs'
import {
  acceptedSpills,
  askShapes,
  definitionOf,
  explainedStacks,
  mostDynamicBytes,
  shapeParameters,
} from './kernel-launches.mjs'
import { limits, occupancy } from './occupancy.mjs'
import { findNvcc } from './tools.mjs'

const page = join(root, 'docs', 'kernels', 'resources.md')
const capabilities = { sm_80: '8.0', sm_90a: '9.0' }
const archs = Object.keys(capabilities)

function leaveOut(why) {
  console.log(`left out: ${why}`)
  process.exit(75)
}

/**
 * 'void nexus::cuda::k<nexus::cuda::S<float, 1>, true>(…)' in its parts.
 * @param {string} demangled
 */
export function nameOf(demangled) {
  const plain = demangled.replaceAll('(anonymous namespace)::', '').replace(/^void /, '')
  const [qualified] = /^[\w:]+(?=[<(])/.exec(plain) ?? []
  if (qualified === undefined) throw new Error(`not a kernel's name: ${demangled}`)
  const list = argumentsAt(plain, qualified.length)
  const templateArguments = splitArguments(list)
  const shape = templateArguments[0]?.includes('<') ? templateArguments[0] : null
  const instance = list
    .replace(/\bnexus::cuda::(?:hopper::)?/g, '')
    .replaceAll('__nv_bfloat16', 'bf16')
    .replaceAll('__half', 'f16')
    .replace(/\bfloat\b/g, 'f32')
  return { qualified, kernel: qualified.replace(/.*::/, ''), templateArguments, shape, instance }
}

/** What stands between the angle brackets that open at `from`; '' where none do. Parameters' types may have others behind them. */
function argumentsAt(text, from) {
  let depth = 0
  for (let i = from; i < text.length; i++) {
    if (text[i] === '<') depth++
    if (text[i] === '>') depth--
    if (depth === 0) return text.slice(from + 1, i)
  }
  throw new Error(`no end of the template arguments: ${text}`)
}

/** Template arguments at the outermost level. */
function splitArguments(list) {
  const found = []
  let [depth, start] = [0, 0]
  for (let i = 0; i <= list.length; i++) {
    if (list[i] === '<') depth++
    if (list[i] === '>') depth--
    if (i === list.length || (list[i] === ',' && depth === 0)) {
      if (i > start) found.push(list.slice(start, i).trim())
      start = i + 1
    }
  }
  return found
}

function demangle(symbols) {
  const run = spawnSync('c++filt', ['-n'], { input: symbols.join('\n'), encoding: 'utf8' })
  if (run.status !== 0) throw new Error(`c++filt (of binutils) is needed: ${run.error?.message ?? run.stderr}`)
  return run.stdout.trimEnd().split('\n')
}

/** Every kernel of the addon with its figures by architecture. */
function kernelsOf(cubins, nvcc) {
  const compiled = cubins.flatMap(({ arch, kernels }) => kernels.map((each) => ({ arch, ...each })))
  const names = demangle(compiled.map(({ symbol }) => symbol)).map(nameOf)
  const shapes = [...new Set(names.flatMap(({ shape }) => shape ?? []))]
  const asked = shapes.length > 0 ? askShapes(nvcc, shapes) : new Map()
  const rows = new Map()
  for (const [i, each] of compiled.entries()) {
    const name = names[i]
    const { arch } = each
    if (!(arch in capabilities) || each.empty) continue
    const key = `${name.qualified}<${name.instance}>`
    if (!rows.has(key)) rows.set(key, { ...name, on: {} })
    rows.get(key).on[arch] = figuresOf(name, each, asked)
  }
  const numbers = new Intl.Collator('en', { numeric: true })
  return [...rows.values()].sort(
    (a, b) => numbers.compare(a.kernel, b.kernel) || numbers.compare(a.instance, b.instance),
  )
}

function figuresOf(name, compiled, asked) {
  const ofShape = name.shape === null ? null : asked.get(name.shape)
  const most = mostDynamicBytes[name.kernel]
  const dynamicBytes = ofShape?.dynamicBytes ?? most?.(name.templateArguments) ?? 0
  if (ofShape?.dynamicBytes == null && most === undefined && compiled.mayShare && compiled.staticBytes === 0) {
    throw new Error(
      `${name.kernel}: it or a kernel beside it declares shared memory without a size; say in scripts/kernel-launches.mjs how much its launch gives it`,
    )
  }
  const threads = compiled.maxThreads ?? ofShape?.threads ?? null
  if (threads === null) throw new Error(`${name.kernel}: neither __launch_bounds__ nor a shape says its threads`)
  if (threads !== (ofShape?.threads ?? threads)) {
    throw new Error(`${name.kernel}<${name.instance}>: __launch_bounds__ of ${threads}, launched by ${ofShape.threads}`)
  }
  const { arch, registers, staticBytes, stackBytes, spills } = compiled
  const sharedBytes = staticBytes + dynamicBytes
  const fits = occupancy({ capability: capabilities[arch], threads, registers, sharedBytes })
  return { threads, registers, staticBytes, dynamicBytes, atMost: most !== undefined, stackBytes, spills, ...fits }
}

/** What is wrong with the stacks of kernels, a line each. */
export function faultsOf(rows) {
  const faults = []
  for (const { kernel, instance, on } of rows) {
    for (const [arch, { spills, stackBytes, blocks }] of Object.entries(on)) {
      const what = `${kernel}<${instance}> on ${arch}`
      const accepted =
        acceptedSpills.find((each) => each.kernel === kernel && each.instance.test(instance))?.most[arch] ?? 0
      if (spills > accepted)
        faults.push(`${what} spills: ${spills} instructions, ${stackBytes} bytes (accepted: ${accepted})`)
      else if (stackBytes > 0 && spills === 0 && accepted === 0 && !(kernel in explainedStacks)) {
        faults.push(`${what} has a stack of ${stackBytes} bytes that nothing explains`)
      }
      if (blocks === 0) faults.push(`${what} cannot be launched: no block fits on an SM`)
    }
  }
  return faults
}

/** The figures of the architectures in a cell: one where they are the same. */
function cell(on, show) {
  const shown = archs.filter((arch) => on[arch] !== undefined).map((arch) => String(show(on[arch])))
  return [...new Set(shown)].length === 1 ? shown[0] : shown.join(' / ')
}

function table(rows) {
  const lines = rows.map(({ instance, on }) => {
    const cells = [
      instance === '' ? '' : `\`${instance}\``,
      cell(on, ({ threads }) => threads),
      cell(on, ({ registers }) => registers),
      cell(on, ({ staticBytes }) => staticBytes),
      cell(on, ({ dynamicBytes, atMost }) => (atMost ? `≤ ${dynamicBytes}` : dynamicBytes)),
      cell(on, ({ stackBytes }) => stackBytes),
      cell(on, ({ spills }) => spills),
      cell(on, ({ blocks }) => blocks),
      cell(on, ({ warps }) => warps),
      cell(on, ({ by }) => by.join(', ')),
    ]
    return `| ${cells.join(' | ')} |`
  })
  return [
    '| instance | threads | registers | static | dynamic | stack | spills | blocks | warps | limited by |',
    '|---|---|---|---|---|---|---|---|---|---|',
    ...lines,
  ].join('\n')
}

function section(kernel, rows) {
  const definition = definitionOf(kernel)
  const of = rows[0].shape === null ? '' : /(\w+)</.exec(rows[0].shape)?.[1]
  const lines = [`## ${kernel}`, '']
  if (definition !== null) {
    const template = definition.parameters === '' ? '' : `: \`<${definition.parameters}>\``
    const shape = of === '' ? '' : `, the first of them \`${of}<${shapeParameters(of)}>\``
    lines.push(`\`kernels/src/${definition.file}\`${template}${shape}`, '')
  }
  const alone = archs.filter((arch) => rows.some(({ on }) => on[arch] !== undefined))
  if (alone.length === 1) lines.push(`For compute capability ${capabilities[alone[0]]} alone.`, '')
  if (kernel in explainedStacks) lines.push(`Its stack is no spill: ${explainedStacks[kernel]}.`, '')
  return [...lines, table(rows), ''].join('\n')
}

/** The page. */
export function render(rows, compiler) {
  const spilling = acceptedSpills.filter(({ kernel, instance }) =>
    rows.some(
      (row) => row.kernel === kernel && instance.test(row.instance) && archs.some((a) => row.on[a]?.spills > 0),
    ),
  )
  const kernels = [...new Set(rows.map(({ kernel }) => kernel))]
  const shared = (capability) => limits[capability].sharedBytes / 1024
  return `# Resources of the CUDA kernels

Made by \`node scripts/kernel-resources.mjs\` from the built addon; not written by hand. Compiler: ptxas ${compiler}.

Of two figures the first is for compute capability 8.0 (sm_80), the second for 9.0 (sm_90a); one stands for both.
Threads are those of a block, by the kernel's \`__launch_bounds__\` or its shape; registers and stack (bytes of local memory) those of a thread; static
and dynamic shared memory is in bytes of a block, with ≤ the most that a launch may get. Spills are the instructions that store a register to the stack or
load it back, as the compiler marks them. Blocks and warps are what fits on an SM at once by the rules of CUDA's \`cuda_occupancy.h\`, of at
most 32 blocks, 64 warps, 65536 registers and ${shared('8.0')} or ${shared('9.0')} KiB of shared memory; the last column is what a further block would lack. A grid may be smaller:
\`route_small\` is one block in all. Threads of \`grouped_wgmma\` divide their registers anew once they run.

${rows.length} kernels. ${
    spilling.length === 0
      ? 'None spills.'
      : `None spills but for these, which are accepted as they are (\`scripts/kernel-launches.mjs\`); any other fails \`.ci/run\`:

${spilling.map(({ kernel, instance, why }) => `- \`${kernel}\`, ${rowsLike(rows, kernel, instance)}: ${why}.`).join('\n')}`
  }

${kernels
  .map((kernel) =>
    section(
      kernel,
      rows.filter((row) => row.kernel === kernel),
    ),
  )
  .join('\n')}`
}

const rowsLike = (rows, kernel, instance) =>
  rows
    .filter((row) => row.kernel === kernel && instance.test(row.instance))
    .map((row) => `\`${row.instance}\``)
    .join(', ')

/** The compiler that a page was made with; null for none. */
export const compilerOf = (markdown) => /Compiler: ptxas (V[\d.]+\d)/.exec(markdown)?.[1] ?? null

/** What the written page is to the one that would be written now. */
export function compare(written, now, compiler) {
  if (written === now) return 'same'
  const by = compilerOf(written)
  return by !== null && by !== compiler ? 'of another compiler' : 'stale'
}

function main(check) {
  const addon = process.env.NEXUS_NATIVE_PATH ?? join(root, 'kernels', 'build', 'Release', 'nexus.node')
  if (!existsSync(addon)) leaveOut(`${relative(root, addon)} is not built`)
  const code = cubinsOf(readFileSync(addon))
  if (code.length === 0) leaveOut('this addon was built without CUDA')
  if (code.some((cubin) => makerOf(cubin) === null)) leaveOut('this addon was compiled by a CUDA before 13')
  const nvcc = findNvcc()
  if (nvcc === null) leaveOut('no nvcc, of which the shapes of the kernels are asked')
  const cubins = code.map(readCubin)
  const rows = kernelsOf(cubins, nvcc)
  const faults = faultsOf(rows)
  for (const fault of faults) console.log(fault)
  process.exitCode = faults.length > 0 ? 1 : 0

  const compiler = cubins[0].compiler
  const missing = archs.filter((arch) => cubins.every((cubin) => cubin.arch !== arch))
  const name = relative(root, page)
  if (missing.length > 0) {
    console.log(`${rows.length} kernels; ${name} is not compared: no code for ${missing.join(', ')} here`)
    if (!check) process.exitCode = 1
    return
  }
  const text = render(rows, compiler)
  if (!check) {
    writeFileSync(page, text)
    console.log(`${rows.length} kernels: ${name}`)
    return
  }
  const written = existsSync(page) ? readFileSync(page, 'utf8') : ''
  const verdict = compare(written, text, compiler)
  if (verdict === 'same') console.log(`${rows.length} kernels, as ${name} says`)
  else if (verdict === 'of another compiler') {
    console.log(`${rows.length} kernels; ${name} is not compared: of ptxas ${compilerOf(written)}, this is ${compiler}`)
  } else {
    console.log(`${name} is not that of this addon: node scripts/kernel-resources.mjs`)
    process.exitCode = 1
  }
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [option, ...rest] = process.argv.slice(2)
  if (rest.length > 0 || (option !== undefined && option !== '--check')) {
    console.log('usage: node scripts/kernel-resources.mjs [--check]')
    process.exit(1)
  }
  main(option === '--check')
}
