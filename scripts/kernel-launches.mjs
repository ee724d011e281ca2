// What the compiled code does not say of its kernels: the dynamic shared memory of their launches, and what is known of their stacks.
// A kernel of a shape takes it from the shape's own SHARED_BYTES and THREADS, as its launch does: they are asked of nvcc.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { root } from './child.mjs'

const sources = join(root, 'kernels', 'src')
const folders = ['data/cuda', 'exec']

/**
 * Dynamic shared memory where it depends on the router: the most that a launch of the instance gets.
 * @type {Readonly<Record<string, (templateArguments: readonly string[]) => number>>}
 */
export const mostDynamicBytes = {
  // kDecodeSharedBytes in decode.h.
  decode_hidden_kernel: () => 48 * 1024,
  decode_output_kernel: () => 48 * 1024,
  // Nothing of routing asks for more than every kernel may have: block_fits() and cluster_fits() see to it, and the
  // grid's words are counted in route_large.cu.
  route_block_kernel: () => 48 * 1024,
  route_tokens_kernel: () => 48 * 1024,
  route_place_kernel: () => 48 * 1024,
  route_sort_kernel: () => 48 * 1024,
}

/** Stacks that are no spills, and what they are. */
export const explainedStacks = {
  fill_normal_kernel: 'an array of CUDA’s own sin and cos, which reduce large arguments by it',
}

/**
 * Spills that are accepted: instructions, at most, by architecture. New ones fail the check; one that is gone is taken off.
 * @type {readonly { kernel: string, instance: RegExp, most: Readonly<Record<string, number>>, why: string }[]}
 */
export const acceptedSpills = [
  {
    kernel: 'grouped_wgmma_kernel',
    instance: /^Shape<\w+, 160, 4, 2, .*>, (true|false)$/,
    most: { sm_90a: 8 },
    why: 'in pairs: one or two registers of the threads that copy and of the warp that finds tiles, at most thrice a tile',
  },
  {
    kernel: 'grouped_wgmma_kernel',
    instance: /^Shape<\w+, (64, 5|160, 4), 1, .*>, true$/,
    most: { sm_90a: 4 },
    why: 'with lanes: one or two registers of the warp that finds tiles, stored before them, loaded once a tile',
  },
  {
    kernel: 'mlp_wgmma_kernel',
    instance: /Shape<\w+, 160, 4, 1, /,
    most: { sm_90a: 17 },
    why: 'four registers of the threads that multiply, of the tile that one lane reads for its warp: once a tile',
  },
  {
    kernel: 'grouped_simt_kernel',
    instance: /^SimtShape<f32, f32, 128, 128, 16, 8, 8, 2>, true$/,
    most: { sm_80: 41 },
    why: 'float32 with lanes on 8.0, over 192 rows an expert: two blocks an SM leave 128 registers, 64 of which are sums',
  },
  {
    kernel: 'grouped_simt_kernel',
    instance: /^SimtShape<(bf16|f16), f32, 64, 64, 16, 4, 4, 3>, true$/,
    most: { sm_80: 3, sm_90a: 6 },
    why: 'a float32 router on 16-bit tokens, with lanes: two registers of a tile’s place, behind the inner loop',
  },
  {
    kernel: 'decode_hidden_kernel',
    instance: /^f32, Streamed</,
    most: { sm_90a: 2 },
    why: 'one register around the routing, for an item that asks for the next one’s first chunks',
  },
  {
    kernel: 'decode_output_kernel',
    instance: /^f32, SideBySide<f32, 1, false>/,
    most: { sm_90a: 12 },
    why: 'float32 of few long rows: three registers around the routing and between items',
  },
  {
    kernel: 'decode_output_kernel',
    instance: /^(bf16|f16|f32), (SideBySide|RunOn|Streamed)</,
    most: { sm_90a: 5 },
    why: 'one to three registers around the routing; a block fewer an SM, without them, took 8.3 → 12.2 µs (log, entry 11)',
  },
  {
    kernel: 'grouped_gemv_lanes_kernel',
    instance: /^f32, false$/,
    most: { sm_80: 3 },
    why: 'float32 with lanes on 8.0: two stores and a load',
  },
]

const text = (file) => readFileSync(file, 'utf8')

/** The files that may define or instantiate a kernel, relative to kernels/src. */
function kernelFiles() {
  return folders.flatMap((folder) =>
    readdirSync(join(sources, folder))
      .filter((name) => /\.cuh?$/.test(name))
      .sort()
      .map((name) => `${folder}/${name}`),
  )
}

/**
 * Where a kernel stands, and the names of its template parameters.
 * @param {string} kernel without namespace
 * @returns {{ file: string, parameters: string } | null} parameters '' where it is no template
 */
export function definitionOf(kernel) {
  for (const file of kernelFiles()) {
    const found = new RegExp(`(?:template <([^>]*)>\\s*)?__global__[^;{]*?\\b${kernel}\\(`).exec(
      text(join(sources, file)),
    )
    if (found !== null) return { file, parameters: parameterNames(found[1] ?? '') }
  }
  return null
}

/** The names of a shape's template parameters; '' where it is not found. */
export function shapeParameters(shape) {
  for (const file of kernelFiles()) {
    const found = new RegExp(`template <([^>]*)>\\s*struct ${shape}(?: : \\w+)? \\{`).exec(text(join(sources, file)))
    if (found !== null) return parameterNames(found[1] ?? '')
  }
  return ''
}

const parameterNames = (list) =>
  list
    .split(',')
    .map((parameter) => /(\w+?)_?\s*$/.exec(parameter)?.[1] ?? '')
    .join(', ')

/**
 * Dynamic shared memory and threads of shapes, by compiling a table of their constants (a second; no kernel is instantiated).
 * @param {string} nvcc
 * @param {readonly string[]} shapes qualified names, such as nexus::cuda::MmaShape<float, …>
 * @returns {Map<string, { dynamicBytes: number | null, threads: number | null }>} null: the shape does not say
 */
export function askShapes(nvcc, shapes) {
  const folder = mkdtempSync(join(tmpdir(), 'nexus-shapes-'))
  try {
    const headers = kernelFiles().filter((file) => file.endsWith('.cuh'))
    const constants = shapes.map((shape) => `  shared<${shape}>(), threads<${shape}>(),\n`)
    writeFileSync(
      join(folder, 'shapes.cu'),
      `${headers.map((file) => `#include "${file}"\n`).join('')}
template <class S> constexpr unsigned shared() { if constexpr (requires { S::SHARED_BYTES; }) return S::SHARED_BYTES; else return ~0u; }
template <class S> constexpr unsigned threads() { if constexpr (requires { S::THREADS; }) return S::THREADS; else return ~0u; }
__device__ unsigned shapes[] = {\n${constants.join('')}};\n`,
    )
    const args = ['-ptx', '-std=c++20', '-arch=sm_80', '--expt-relaxed-constexpr', '-o', join(folder, 'shapes.ptx')]
    const includes = [`-I${join(root, 'kernels', 'include')}`, `-I${sources}`]
    const run = spawnSync(nvcc, [...args, ...includes, join(folder, 'shapes.cu')], { encoding: 'utf8' })
    if (run.status !== 0) {
      throw new Error(`the shapes of kernels cannot be compiled: ${run.stderr || run.stdout || run.error?.message}`)
    }
    const values = tableOf(readFileSync(join(folder, 'shapes.ptx'), 'utf8'), 'shapes', 2 * shapes.length)
    const known = (value) => (value === 2 ** 32 - 1 ? null : value)
    return new Map(
      shapes.map((shape, i) => [shape, { dynamicBytes: known(values[2 * i]), threads: known(values[2 * i + 1]) }]),
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** The `count` 32-bit numbers of a table in PTX: as bytes or as words, without the zeros at its end. */
export function tableOf(ptx, name, count) {
  const [, width, list] = new RegExp(`\\.[bu](8|32) ${name}\\[\\d+\\] = \\{([\\d, ]*)\\}`).exec(ptx) ?? []
  if (list === undefined) throw new Error(`PTX: no table '${name}'`)
  const numbers = list.split(',').map(Number)
  const each = width === '8' ? [1, 2 ** 8, 2 ** 16, 2 ** 24] : [1]
  return Array.from({ length: count }, (_, i) =>
    each.reduce((sum, unit, byte) => sum + unit * (numbers[i * each.length + byte] ?? 0), 0),
  )
}
