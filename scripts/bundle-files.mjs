// The files of a bundle, one relative path a line, for tar: the built workspace, and of node_modules what running needs.
// A package is in when it can be reached from the workspace's packages without passing one that only builds, lints,
// documents or publishes; so what an update brings in is in, and what nothing needs any more is out.
import { existsSync, lstatSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { basename, dirname, join, relative, sep } from 'node:path'
import { root } from './child.mjs'
import { packageFolders } from './setup.mjs'

const TOOLS = [
  /^@arethetypeswrong\//,
  /^@biomejs\//,
  /^@changesets\//,
  /^@esbuild\//,
  /^@rollup\//,
  /^@shikijs\//,
  /^@turbo\//,
  /^@types\//,
  /^(cmake-js|esbuild|node-addon-api|node-api-headers|playwright-core|publint|rollup|tsup|turbo|typedoc|typescript)$/,
]
const isTool = (name) => TOOLS.some((pattern) => pattern.test(name))

// What only a compiler, an editor or a reader wants.
const UNUSED = /\.(d\.[cm]?ts|map|md|markdown|flow|tsbuildinfo)$|(^|\/)(CHANGELOG|HISTORY)[^/]*$/i

const out = new Set()
const add = (path) => out.add(relative(root, path).split(sep).join('/'))

function addTree(folder, { skip = () => false, drop = () => false } = {}) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (skip(path, entry)) continue
    if (entry.isDirectory()) addTree(path, { skip, drop })
    else if (!drop(path)) add(path)
  }
}

// Names in a node_modules folder, scopes opened.
function namesIn(folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder).flatMap((name) => {
    if (name.startsWith('.')) return []
    return name.startsWith('@') ? readdirSync(join(folder, name)).map((inner) => `${name}/${inner}`) : [name]
  })
}

const seen = new Set()
// Adds the links of a node_modules folder and follows each to its package in the store, and from there on.
function addModules(folder) {
  for (const name of namesIn(folder)) {
    if (isTool(name)) continue
    const link = join(folder, name)
    if (!lstatSync(link).isSymbolicLink()) continue
    add(link)
    const real = realpathSync(link)
    if (seen.has(real) || !real.includes(`${sep}.pnpm${sep}`)) continue
    seen.add(real)
    addTree(real, { skip: (_, entry) => entry.name === 'node_modules', drop: (path) => UNUSED.test(path) })
    const own = join(real, 'node_modules')
    if (existsSync(own)) addModules(own)
    // Its dependencies are its neighbours in the store.
    addModules(name.startsWith('@') ? dirname(dirname(real)) : dirname(real))
  }
}

const folders = packageFolders()
for (const modules of [root, ...folders.map((folder) => join(root, folder))]) addModules(join(modules, 'node_modules'))
const shims = join(root, 'node_modules', '.bin')
const kept = new Set([...seen].flatMap((real) => Object.keys(commands(real))))
for (const name of readdirSync(shims)) if (kept.has(name)) add(join(shims, name))

function commands(folder) {
  const { name, bin = {} } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  return typeof bin === 'string' ? { [basename(name)]: bin } : bin
}

// The workspace itself: sources (tests run on them), what was built, fixtures. Of the native build the addon and the test
// programs; bundle.sh puts stripped copies of those in, so they are not listed here.
const SKIP = new Set(['node_modules', 'build', '.git', '.turbo', '.bundle', '.pack', 'coverage', 'api', '__pycache__'])
for (const folder of ['kernels', 'packages', 'apps', 'scripts', 'tests', 'docs', '.changeset']) {
  if (!existsSync(join(root, folder))) continue
  addTree(join(root, folder), {
    skip: (path, entry) => SKIP.has(entry.name) || entry.name.startsWith('build-') || path.endsWith('kernels/npm'),
    drop: (path) => /\.(tsbuildinfo|node)$/.test(path),
  })
}
for (const name of readdirSync(root)) {
  if (
    /^(package\.json|pnpm-.*\.yaml|tsconfig.*\.json|vitest\.config\.ts|README\.md|LICENSE|CONTRIBUTING\.md)$/.test(name)
  ) {
    add(join(root, name))
  }
}
process.stdout.write(`${[...out].join('\n')}\n`)
