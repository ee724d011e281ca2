// Relative links of the Markdown files lead to files that exist. Prints each that does not; exit code 1 if there is one.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { root } from './child.mjs'

const SKIP = new Set(['node_modules', 'dist', 'build', 'api', '.git', '.bundle', '.changeset'])

function* markdown(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (SKIP.has(entry.name)) continue
    const path = join(folder, entry.name)
    if (entry.isDirectory()) yield* markdown(path)
    else if (entry.name.endsWith('.md')) yield path
  }
}

let checked = 0
const broken = []
for (const file of markdown(root)) {
  const text = readFileSync(file, 'utf8').replace(/```[\s\S]*?```/g, '')
  for (const [, target = ''] of text.matchAll(/\]\(([^)\s]+)(?:\s+"[^"]*")?\)/g)) {
    const [path = ''] = target.split('#')
    if (path === '' || /^[a-z][a-z+.-]*:/i.test(path)) continue
    checked++
    if (!existsSync(join(dirname(file), decodeURIComponent(path)))) broken.push(`${relative(root, file)}: ${target}`)
  }
}
for (const link of broken) console.log(`broken link in ${link}`)
console.log(`${checked} relative links checked, ${broken.length} broken`)
process.exitCode = broken.length > 0 ? 1 : 0
