// The last step of the build: thin ES modules around the CommonJS ones, so that `import` and `require` share one module state
// and a class, the loaded addon and the default streams exist once in a process. (tsup's d.ts pass empties the
// folder of .d.mts files after its onSuccess hook has run, so this is a step of its own.)
import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const dist = fileURLToPath(new URL('../dist/', import.meta.url))
const requireBuilt = createRequire(import.meta.url)
for (const entry of ['index', 'binding-entry']) {
  // Named one by one: a `*` would depend on what Node's lexer recognises of the CommonJS file.
  const names = Object.keys(requireBuilt(path.join(dist, `${entry}.js`))).sort()
  const exports = names.map((name) => `export const ${name} = cjs.${name}`)
  writeFileSync(path.join(dist, `${entry}.mjs`), [`import cjs from './${entry}.js'`, '', ...exports, ''].join('\n'))
  writeFileSync(path.join(dist, `${entry}.d.mts`), `export * from './${entry}.js'\n`)
}
