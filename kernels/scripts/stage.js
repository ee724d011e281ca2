'use strict'
// prepack of a platform package: puts the addon that was built here into it, or stops the packing. Without this an empty
// package would be published, and found only by those who install it.
const fs = require('node:fs')
const path = require('node:path')

const packageDirectory = process.cwd()
const manifest = JSON.parse(fs.readFileSync(path.join(packageDirectory, 'package.json'), 'utf8'))
const built = path.join(__dirname, '..', 'build', 'Release', 'nexus.node')
const staged = path.join(packageDirectory, 'nexus.node')
const here = `${process.platform}-${process.arch}`

if (!manifest.os?.includes(process.platform) || !manifest.cpu?.includes(process.arch)) {
  // Another platform's package: its addon must have been put here by the machine that can build it.
  if (!fs.existsSync(staged))
    throw new Error(`${manifest.name}: no nexus.node, and this machine (${here}) cannot build it`)
} else {
  if (!fs.existsSync(built)) throw new Error(`${manifest.name}: ${built} is missing; build it first`)
  fs.copyFileSync(built, staged)
  // A file that does not load must not be published.
  require(staged)
}
