/** Stand-ins for the Python peers: programs that are called as python3 is, and speak as the scripts do. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** A program that runs this JavaScript with `args` (options by name, repeated ones as lists), `fs` and `say` in scope. */
export function fakePython(folder: string, name: string, body: string): string {
  const path = join(folder, name)
  const text = `#!/usr/bin/env node
const fs = require('node:fs')
const args = {}
for (let i = 3; i < process.argv.length; i++) {
  const key = process.argv[i].slice(2)
  const next = process.argv[i + 1]
  const value = next === undefined || next.startsWith('--') ? true : process.argv[++i]
  ;(args[key] ??= []).push(value)
}
const say = (what) => process.stdout.write(JSON.stringify(what) + '\\n')
${body}
`
  writeFileSync(path, text, { mode: 0o755 })
  return path
}

/** bench_peers.py: every peer takes 100 µs for each token; `slow` is wrong. Checks that the logits of each input are there in full. */
export const benchPeers = `
const results = []
for (const shape of args.shape) {
  const [name, , , experts] = shape.split(':')
  const [, counts] = args['tokens-of'].find((each) => each.startsWith(name + '=')).split('=')
  for (const tokens of counts.split(',').map(Number)) {
    const file = args.logits[0] + '/' + name + '-' + tokens + '-0.f32'
    if (fs.statSync(file).size !== 4 * tokens * Number(experts)) throw new Error('logits of ' + name)
    if (args.peers[0] === 'none') {
      const rows = { 'torch router': { us_graph: 30 + tokens }, 'not here': { exception: 'no' } }
      results.push({ key: [name, tokens, 'router', '-'], status: 'ok', rows })
    } else {
      for (const peer of args.peers[0].split(',')) {
        results.push({ key: [name, tokens, peer, 'layer'], status: 'ok', us_graph: 100 * tokens, err: 3e-3, ok: peer !== 'slow' })
      }
    }
  }
}
fs.writeFileSync(args.json[0], JSON.stringify({ results }))
`
