// What a machine must have before anything can be set up, each checked in a few milliseconds: a missing tool is one line
// that says what to install.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'

const SNIPPET = `#include <concepts>
#include <span>
template <class T> concept Summable = requires(T a) { { a + a } -> std::convertible_to<T>; };
static_assert(Summable<int>);
int main() { return static_cast<int>(std::span<const int>{}.size()); }
`

/** Absolute path of a program on PATH, or null. */
export function which(program, path = process.env.PATH ?? '') {
  if (program.includes('/')) return existsSync(program) ? program : null
  for (const folder of path.split(delimiter)) {
    if (folder && existsSync(join(folder, program))) return join(folder, program)
  }
  return null
}

/** The nvcc that a build would use, or null: CUDACXX, PATH, then the places where the toolkit installs itself. */
export function findNvcc(env = process.env) {
  const places = [env.CUDACXX, 'nvcc']
  for (const folder of [env.CUDA_PATH, env.CUDA_HOME, '/usr/local/cuda']) if (folder) places.push(`${folder}/bin/nvcc`)
  for (const place of places) {
    const found = place ? which(place, env.PATH) : null
    if (found) return found
  }
  return null
}

function install(debian, fedora, mac) {
  return `Debian/Ubuntu: apt-get install ${debian}; Fedora: dnf install ${fedora}; macOS: ${mac}`
}

function nodeProblem() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major > 20 || (major === 20 && minor >= 19)) return null
  return `Node >= 20.19 is needed, this is ${process.version}: install it from https://nodejs.org`
}

function npmProblem() {
  return which('npx') ? null : 'npm (with npx) is needed: install it, or Node from https://nodejs.org, which brings it'
}

function cmakeProblem() {
  const hint = install('cmake', 'cmake', 'brew install cmake')
  const r = spawnSync('cmake', ['--version'], { encoding: 'utf8' })
  if (r.error) return `CMake >= 3.22 is needed and was not found (${hint})`
  const [, version, major, minor] = /version ((\d+)\.(\d+)\S*)/.exec(r.stdout) ?? []
  if (Number(major) > 3 || (Number(major) === 3 && Number(minor) >= 22)) return null
  return `CMake >= 3.22 is needed, this is ${version ?? 'of unknown version'} (${hint})`
}

function compilerProblem(env) {
  const hint = install('g++', 'gcc-c++', 'xcode-select --install')
  const named = env.CXX?.trim()
  const compiler = named || ['c++', 'g++', 'clang++'].find((name) => which(name))
  if (!compiler) return `a C++20 compiler is needed and was not found (${hint})`
  const [program = '', ...flags] = compiler.split(/\s+/)
  const args = [...flags, '-std=c++20', '-fsyntax-only', '-x', 'c++', '-']
  const r = spawnSync(program, args, { input: SNIPPET, encoding: 'utf8' })
  // EPIPE only says that a compiler refused before it read the snippet; its exit code says the rest.
  if (r.error && r.error.code !== 'EPIPE')
    return `a C++20 compiler is needed, and ${named ? `CXX=${named}` : program} cannot be run (${hint})`
  if (r.status !== 0) return `a C++20 compiler is needed, and ${compiler} does not compile C++20 (${hint})`
  return null
}

function makeProblem() {
  if (which('make') || which('gmake') || which('ninja')) return null
  return `make or ninja is needed and was not found (${install('make', 'make', 'xcode-select --install')})`
}

/** One line for each missing tool; an empty list on a machine that has them all. */
export function missingTools(env = process.env) {
  return [nodeProblem(), npmProblem(), cmakeProblem(), compilerProblem(env), makeProblem()].filter((p) => p !== null)
}
