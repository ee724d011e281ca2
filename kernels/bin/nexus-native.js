#!/usr/bin/env node
'use strict'
// A user's source build of the addon: cmake itself with the headers of two npm packages, nothing downloaded. (A checkout builds
// through cmake-js, with the same CMakeLists.txt and the same result.)
const { spawnSync } = require('node:child_process')
const os = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..')
const help = `usage: nexus-native <command>

  build [cmake options]   builds the native addon from source into ${path.join(root, 'build')}
                          needs cmake >= 3.22 and a C++20 compiler (CXX); nvcc (CUDACXX) when CUDA is wanted
                          -DNEXUS_CUDA=ON requires CUDA, OFF leaves it out; AUTO, the default, uses nvcc when found
  info [--json]           what the addon sees of this machine; exit status 1 when it cannot be loaded
  --help                  this text`

function fail(message) {
  process.stderr.write(`nexus-native: ${message}\n`)
  process.exit(1)
}

function versionOf(command) {
  const result = spawnSync(command, ['--version'], { encoding: 'utf8' })
  return result.error || result.status !== 0 ? null : result.stdout.split('\n')[0]
}

function checkTools() {
  const cmake = versionOf('cmake')
  if (cmake === null) fail('cmake was not found; install cmake >= 3.22 (https://cmake.org) and run this again')
  const found = /(\d+)\.(\d+)/.exec(cmake)
  if (found && (Number(found[1]) < 3 || (Number(found[1]) === 3 && Number(found[2]) < 22))) {
    fail(`cmake >= 3.22 is needed, found: ${cmake}`)
  }
  const compilers = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++']
  if (process.platform !== 'win32' && !compilers.some((name) => versionOf(name) !== null)) {
    fail(`no C++ compiler was found (tried ${compilers.join(', ')}); install one with C++20, or set CXX`)
  }
}

function build(options) {
  checkTools()
  const include = [require('node-api-headers').include_dir, require('node-addon-api').include_dir].map((directory) =>
    path.resolve(directory.replace(/^"|"$/g, '')),
  )
  const out = path.join(root, 'build')
  const run = (args) => {
    const result = spawnSync('cmake', args, { stdio: 'inherit', cwd: root })
    if (result.error) fail(`cmake cannot be run: ${result.error.message}`)
    if (result.status !== 0)
      fail(`the build failed: cmake ${args[0] === '--build' ? '--build' : 'configuration'} (status ${result.status})`)
  }
  run([
    '-S',
    root,
    '-B',
    out,
    '-DCMAKE_BUILD_TYPE=Release',
    '-DNEXUS_TESTS=OFF',
    `-DCMAKE_JS_INC=${include.join(';')}`,
    `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${path.join(out, 'Release')}`,
    ...options,
  ])
  run(['--build', out, '--parallel', String(Math.max(1, os.availableParallelism()))])
  const { addon } = require('..').systemInfo()
  if ('error' in addon) fail(`the addon was built but cannot be loaded: ${addon.error}`)
  process.stdout.write(`${addon.path}\n`)
}

function info(options) {
  const unknown = options.find((option) => option !== '--json')
  if (unknown !== undefined) fail(`info: unknown option ${unknown}`)
  const report = require('..').systemInfo()
  if (options.includes('--json')) {
    process.stdout.write(`${JSON.stringify(report, null, 2)}\n`)
  } else {
    const { addon, machine } = report
    const lines = [`node      ${report.node} on ${report.platform}-${report.arch}`]
    if ('error' in addon) lines.push(`addon     ${addon.error}`)
    else lines.push(`addon     ${addon.path} (found by ${addon.foundBy})`)
    if (machine !== null) {
      const { cpu, cuda, nvml, rapl } = machine
      lines.push(`cpu       ${cpu.name}, ${cpu.cores} cores, ${cpu.threads} threads in use, ${cpu.isa}`)
      lines.push(`cuda      ${cuda.status}`)
      for (const d of cuda.devices) {
        const gib = (d.memoryBytes / 2 ** 30).toFixed(1)
        lines.push(
          `  ${d.device.padEnd(8)}${d.name}, compute ${d.computeCapability}, ${d.multiprocessors} SMs, ${gib} GiB`,
        )
      }
      lines.push(`nvml      ${nvml.detail}`)
      lines.push(`rapl      ${rapl.domains.length > 0 ? rapl.domains.join(', ') : rapl.detail}`)
    }
    process.stdout.write(`${lines.join('\n')}\n`)
  }
  if ('error' in report.addon) process.exitCode = 1
}

const [command, ...rest] = process.argv.slice(2)
if (command === 'build' && !rest.includes('--help')) {
  build(rest)
} else if (command === 'info' && !rest.includes('--help')) {
  info(rest)
} else if (command === '--help' || command === '-h' || command === 'help' || rest.includes('--help')) {
  process.stdout.write(`${help}\n`)
} else {
  process.stderr.write(`${command === undefined ? '' : `nexus-native: unknown command ${command}\n`}${help}\n`)
  process.exitCode = 2
}
